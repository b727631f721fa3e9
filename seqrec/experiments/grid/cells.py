"""The cells of a grid: the config of each, and its folder."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from seqrec.aliases import __version__
from seqrec.errors import InputError, MissingInputError, check_at_least
from seqrec.experiments import MODELS, is_baseline

# Joins fragments of a log, and an encoder with its ablation.
AND = "+"
# No cell trains longer, whatever its budget.
MOST_EPOCHS = 10_000
# Kind of a budget -> its description in tables.
BUDGETS = {
    "epochs": "equal epochs, {:,} for each row",
    "seconds": "equal wall-clock time, {:,} s of fit for each row",
    "convergence": "to convergence, until validation NDCG@10 has not risen for {:,} epochs",
}


@dataclass(frozen=True)
class Budget:
    """Length of the training, the same for all cells.

    The kind is "epochs"; "seconds" of wall-clock time of `fit`, validation included; or "convergence": until validation
    NDCG@10 has not risen for so many epochs.

    Example:
        >>> Budget.parse("epochs=8").description
        'equal epochs, 8 for each row'
    """

    kind: str
    amount: int

    @staticmethod
    def parse(text: str) -> Budget:
        """Return the budget that a text such as "epochs=8" describes.

        Raises:
            InputError: if the text has another form.
        """
        kind, equals, amount = text.partition("=")
        if kind not in BUDGETS or not equals or not amount.isdecimal() or int(amount) < 1:
            allowed = ", ".join(f"{kind}=N" for kind in BUDGETS)
            raise InputError(f"budget={text!r} must be one of {allowed}, with N a whole number from 1 on")
        return Budget(kind, int(amount))

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.kind}={self.amount}"

    @property
    def description(self) -> str:
        """The budget in words, for tables."""
        return BUDGETS[self.kind].format(self.amount)

    def config(self) -> dict[str, Any]:
        """Return the part of a run's config that sets the budget."""
        trainer = {"max_epochs": self.amount if self.kind == "epochs" else MOST_EPOCHS}
        if self.kind == "seconds":
            trainer["max_time"] = {"seconds": self.amount}  # type: ignore[assignment]  # a nested key
        patience = self.amount if self.kind == "convergence" else MOST_EPOCHS
        return {"trainer": trainer, "early_stopping": {"patience": patience}}


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    `data` are the names of the log's fragments, joined by "+"; `model` is the name of an encoder or a baseline, and
    `ablation` that of a fragment that changes it, empty for none. The seed is that of weights, draws and order.
    """

    data: str
    length: int
    model: str
    ablation: str
    seed: int

    @property
    def row(self) -> str:
        """The model with its ablation."""
        return f"{self.model} {self.ablation}".rstrip()

    @property
    def place(self) -> Path:
        """The cell's folder, relative to the grid's."""
        model = f"{self.model}{AND}{self.ablation}".rstrip(AND)
        return Path("cells", self.data, str(self.length), model, f"seed_{self.seed}")

    def __str__(self) -> str:
        return f"{self.data} {self.length} {self.row} seed {self.seed}"


@dataclass(frozen=True)
class Settings:
    """Settings that all cells of a grid share.

    Attributes:
        configs: Folder of the fragments.
        study: Name of the fragment that all rows share.
        path: The log, if its fragment does not contain it.
        overrides: Further arguments of `seqrec fit`, such as "--model.d_model=32".
    """

    configs: Path
    study: str
    budget: Budget
    path: str | None = None
    overrides: tuple[str, ...] = ()

    def fragments(self, cell: Cell) -> list[Path]:
        """Return the config files of a cell; each changes the earlier ones.

        Raises:
            MissingInputError: if a fragment does not exist.
        """
        named = [("data", name) for name in cell.data.split(AND)] + [("study", self.study)]
        named += [("model", cell.model)] + ([("ablation", cell.ablation)] if cell.ablation else [])
        return [self._fragment(kind, name) for kind, name in named]

    def config(self, cell: Cell) -> dict[str, Any]:
        """Return the config of a cell in addition to its fragments, without its folder."""
        config = self.budget.config()
        config["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False}
        data = {"max_length": cell.length, "seed": cell.seed}
        return {"seed_everything": cell.seed, "data": data, **config}

    def words(self, cell: Cell) -> list[str]:
        """Return the words of a cell's command after its configs. Overrides of the model do not apply to baselines."""
        baseline = is_baseline(cell.model)
        overrides = [word for word in self.overrides if not (baseline and word.startswith("--model."))]
        return [*overrides, *(["--data.source.path", self.path] if self.path is not None else [])]

    def digest(self, cell: Cell) -> str:
        """Return a hash of everything that decides a cell's numbers, except the log's events and the machine.

        The log enters by its name: results stay valid if folders move.
        """
        content = {
            "version": __version__,
            "fragments": [path.read_text(encoding="utf-8") for path in self.fragments(cell)],
            "config": self.config(cell),
            "overrides": self.overrides,
            "log": None if self.path is None else Path(self.path).name,
            "cell": asdict(cell),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def applies(self, cell: Cell) -> bool:
        """Return whether the model has the arguments that its ablation changes."""
        if not cell.ablation:
            return True
        fragment = yaml.safe_load(self._fragment("ablation", cell.ablation).read_text(encoding="utf-8"))
        return set(fragment["model"]["init_args"]) <= set(inspect.signature(MODELS[cell.model]).parameters)

    def _fragment(self, kind: str, name: str) -> Path:
        file = self.configs / kind / f"{name}.yaml"
        if not file.is_file():
            known = sorted(path.stem for path in file.parent.glob("*.yaml"))
            hint = f"; known: {', '.join(known)}" if known else f" (no fragments in {file.parent})"
            raise MissingInputError(f"{kind}={name!r}: there is no {file}{hint}")
        return file


def plan(
    settings: Settings,
    *,
    data: Sequence[str],
    lengths: Sequence[int],
    encoders: Sequence[str],
    baselines: Sequence[str],
    ablations: Sequence[str],
    seeds: int,
) -> list[Cell]:
    """Return the cells of a grid, seed after seed: a grid that is stopped early has complete rows.

    Baselines have neither ablations nor a second seed, because they only count. Ablations of arguments that an encoder
    does not have are left out.

    See `benchmark_paper` for the arguments.

    Raises:
        InputError: if a name is unknown or occurs twice, or a number is out of range.
    """
    everything = {"data": data, "lengths": lengths, "encoders": encoders, "baselines": baselines}
    for name, values in {**everything, "ablations": ablations}.items():
        if not values and (name in ("data", "lengths") or (name == "encoders" and not baselines)):
            raise InputError(f"{name} is empty; give at least one")
        if len(set(values)) < len(values):
            raise InputError(f"{name}={list(values)} names one twice")
    if (least := min(lengths)) < 2:
        raise InputError(f"lengths={list(lengths)}: {least} must be at least 2")
    check_at_least(1, seeds=seeds)
    trained = itertools.product(range(seeds), data, lengths, encoders, ("", *ablations))
    cells = [Cell(log, length, model, ablation, seed) for seed, log, length, model, ablation in trained]
    counted = [Cell(log, length, model, "", 0) for log in data for length in lengths for model in baselines]
    # A baseline may be in both lists.
    planned = list(dict.fromkeys(counted + cells))
    for cell in planned:
        settings.fragments(cell)
    return [cell for cell in planned if settings.applies(cell)]
