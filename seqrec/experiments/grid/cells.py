"""The cells of a grid: which config each of them runs, and where."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from seqrec import __version__, models
from seqrec.errors import InputError, MissingInputError
from seqrec.experiments.grid.budget import Budget

ENCODERS = ("GRU4Rec", "SASRec", "RecMamba", "MambaRec", "MoEMaTrRec")
# Joins fragments of a log, and an encoder with what is ablated.
AND = "+"


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        data: Names of the log's fragments, joined by "+".
        length: Events of a history, at most.
        model: Name of an encoder or a baseline.
        ablation: Name of a fragment that changes it; empty for none.
        seed: Of weights, draws and the order of training.
    """

    data: str
    length: int
    model: str
    ablation: str
    seed: int

    @property
    def row(self) -> str:
        """What tables call the model."""
        return self.model + (f" {self.ablation}" if self.ablation else "")

    @property
    def place(self) -> Path:
        """Its folder, from the grid's."""
        model = self.model + (f"{AND}{self.ablation}" if self.ablation else "")
        return Path("cells", self.data, str(self.length), model, f"seed_{self.seed}")

    def __str__(self) -> str:
        """For people."""
        return f"{self.data} {self.length} {self.row} seed {self.seed}"


@dataclass(frozen=True)
class Settings:
    """What all cells of a grid share.

    Attributes:
        configs: Folder of the fragments.
        study: Name of the fragment that all rows share.
        budget: How long each trains.
        path: The log, where its fragment should not say it.
        overrides: Further words for `seqrec fit`, such as "--model.d_model=32".
    """

    configs: Path
    study: str
    budget: Budget
    path: str | None = None
    overrides: tuple[str, ...] = ()

    def fragments(self, cell: Cell) -> list[Path]:
        """The config files of a cell, each changing those before it.

        Raises:
            MissingInputError: there is none of a name.
        """
        named = [("data", name) for name in cell.data.split(AND)] + [("study", self.study)]
        named += [("model", cell.model)] + ([("ablation", cell.ablation)] if cell.ablation else [])
        return [self._fragment(kind, name) for kind, name in named]

    def config(self, cell: Cell) -> dict[str, Any]:
        """What a cell's config says beside its fragments, but for its folder."""
        budget = self.budget.config()
        return {
            "seed_everything": cell.seed,
            "data": {"max_length": cell.length, "seed": cell.seed},
            **budget,
            "trainer": {
                **budget["trainer"],
                "enable_progress_bar": False,
                "enable_model_summary": False,
            },
        }

    def words(self, cell: Cell) -> list[str]:
        """Words of a cell's command behind its configs; a baseline has nothing of a model's that could be set."""
        baseline = is_baseline(cell.model)
        overrides = [word for word in self.overrides if not (baseline and word.startswith("--model."))]
        return [*overrides, *(["--data.source.path", self.path] if self.path is not None else [])]

    def digest(self, cell: Cell) -> str:
        """Of all that decides a cell's numbers but the log's events and the machine.

        The log counts by its name, so that results stay where folders move.
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
        """Whether the model has what its ablation changes."""
        if not cell.ablation:
            return True
        fragment = yaml.safe_load(self._fragment("ablation", cell.ablation).read_text(encoding="utf-8"))
        return set(fragment["model"]["init_args"]) <= _arguments(cell.model)

    def _fragment(self, kind: str, name: str) -> Path:
        file = self.configs / kind / f"{name}.yaml"
        if not file.is_file():
            known = sorted(path.stem for path in file.parent.glob("*.yaml"))
            where = f"; known: {', '.join(known)}" if known else f" (no fragments in {file.parent})"
            raise MissingInputError(f"{kind}={name!r}: there is no {file}{where}")
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
    """All cells of a grid, seed after seed, so that one that is stopped has whole rows.

    Baselines have neither ablations nor a second seed, since they only count. Ablations of what an encoder does not
    have are left out.

    Args:
        settings: What all cells share.
        data: Names of logs.
        lengths: Events of a history.
        encoders: Models that are trained.
        baselines: Models that count.
        ablations: Names of fragments; each is a further row beside the unchanged encoder.
        seeds: Runs of each.

    Raises:
        InputError: a name is unknown or occurs twice, or a number is out of range.
    """
    for name, values in (("data", data), ("lengths", lengths), ("encoders", encoders)):
        if not values and not (name == "encoders" and baselines):
            raise InputError(f"{name} is empty; give at least one")
    everything = (("data", data), ("lengths", lengths), ("encoders", encoders), ("baselines", baselines))
    for name, values in (*everything, ("ablations", ablations)):
        if len(set(values)) < len(values):
            raise InputError(f"{name}={list(values)} names one twice")
    if (least := min(lengths)) < 2:
        raise InputError(f"lengths={list(lengths)}: {least} must be at least 2")
    if seeds < 1:
        raise InputError(f"seeds={seeds} must be at least 1")
    trained = itertools.product(range(seeds), data, lengths, encoders, ("", *ablations))
    cells = [Cell(log, length, model, ablation, seed) for seed, log, length, model, ablation in trained]
    counted = [Cell(log, length, model, "", 0) for log in data for length in lengths for model in baselines]
    # A baseline may stand among the encoders too.
    planned = list(dict.fromkeys(counted + cells))
    for cell in planned:
        settings.fragments(cell)
    return [cell for cell in planned if settings.applies(cell)]


def is_baseline(model: str) -> bool:
    """Whether a model of this name counts, and is not trained."""
    return issubclass(getattr(models, model, object), models.Baseline)


@cache
def _arguments(model: str) -> set[str]:
    cls = getattr(models, model, None)
    if cls is None:
        raise InputError(f"encoders: {model!r} is no model of seqrec, so that what it takes is not known")
    return set(inspect.signature(cls).parameters)
