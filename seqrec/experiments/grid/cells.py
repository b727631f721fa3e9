"""The cells of a grid: the config of each, its place, and the trials that tune it."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from seqrec.errors import InputError, MissingInputError, check_at_least
from seqrec.experiments import MODELS, is_baseline

# Joins fragments of a log, and an encoder with its ablation.
AND = "+"
# No cell trains longer, whatever its budget.
MOST_EPOCHS = 10_000
# Kind of a budget -> its description in tables.
BUDGETS = {
    "epochs": "equal epochs, {:,} for each row",
    "steps": "equal updates, {:,} for each row",
    "seconds": "equal wall-clock time, {:,} s of fit for each row",
    "convergence": "to convergence, until validation NDCG@10 has not risen for {:,} epochs",
}
# Validations within a patience, if a budget does not state the updates between two.
CHECKS = 8
# Folder of the trials of a model.
TRIALS = "trials"


@dataclass(frozen=True)
class Budget:
    """Length of the training, the same for all cells.

    The kind is "epochs"; "steps", which are updates; "seconds" of wall-clock time of `fit`, validation included; or
    "convergence": until validation NDCG@10 has not risen for so many epochs.

    Attributes:
        patience: Updates without a better validation after which training ends before that; None ends it by `kind`
            alone.
        every: Updates between two validations. None is an eighth of the patience, or an epoch without one.

    Example:
        >>> Budget.parse("steps=20000,patience=1600").description
        'equal updates, 20,000 for each row, or fewer: until validation NDCG@10 has not risen for 1,600 updates'
    """

    kind: str
    amount: int
    patience: int | None = None
    every: int | None = None

    @staticmethod
    def parse(text: str) -> Budget:
        """Return the budget that a text such as "epochs=8" or "steps=20000,patience=1600,every=200" describes.

        Raises:
            InputError: if the text has another form.
        """
        pairs = [part.partition("=")[::2] for part in text.split(",")]
        values = {name: int(amount) for name, amount in pairs if amount.isdecimal() and int(amount) >= 1}
        (kind, _), *others = pairs
        further = {"patience", "every"} if kind != "convergence" else set()
        if kind not in BUDGETS or len(values) < len(pairs) or not {name for name, _ in others} <= further:
            allowed = ", ".join(f"{kind}=N" for kind in BUDGETS)
            further_allowed = "all but convergence may add ,patience=N and ,every=N"
            raise InputError(
                f"budget={text!r} must be one of {allowed}, with N a whole number from 1 on; {further_allowed}"
            )
        patience, every = values.get("patience"), values.get("every")
        if patience is not None and every is not None and patience < every:
            raise InputError(f"budget={text!r}: patience={patience} must be at least every={every}")
        return Budget(kind, values[kind], patience, every)

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        given = {self.kind: self.amount, "patience": self.patience, "every": self.every}
        return ",".join(f"{name}={value}" for name, value in given.items() if value is not None)

    @property
    def description(self) -> str:
        """The budget in words, for tables."""
        text = BUDGETS[self.kind].format(self.amount)
        if self.patience is None:
            return text
        return f"{text}, or fewer: until validation NDCG@10 has not risen for {self.patience:,} updates"

    def config(self) -> dict[str, Any]:
        """Return the part of a run's config that sets the budget."""
        trainer: dict[str, Any] = {"max_epochs": self.amount if self.kind == "epochs" else MOST_EPOCHS}
        if self.kind == "seconds":
            trainer["max_time"] = {"seconds": self.amount}
        if self.kind == "steps":
            trainer["max_steps"] = self.amount
        stopping: dict[str, Any] = {"patience": self.amount if self.kind == "convergence" else MOST_EPOCHS}
        every = self.every
        if self.patience is not None:
            stopping["patience_steps"] = self.patience
            every = every or max(1, self.patience // CHECKS)
        return {
            "trainer": trainer,
            "early_stopping": stopping,
            **({"validation": {"every_n_steps": every}} if every else {}),
        }


@dataclass(frozen=True)
class Cell:
    """One run of a grid, or one more test of the model of another.

    Attributes:
        data: Names of the log's fragments, joined by "+".
        length: Most events of a history.
        model: Name of an encoder or a baseline.
        ablation: Name of a fragment that changes it; empty for none.
        seed: Seed of weights, draws and order.
        label: Name of what `changes` do, which is part of the cell's place; empty for none.
        changes: Arguments of `seqrec fit` without dashes, after those that all rows share.
        trials: Cells whose validation chooses further changes; they are run before. Empty if nothing is tuned.
        model_of: Cell whose model is tested, without training one; None trains.
        checkpoint: Which checkpoint of that model, "best" by validation or "last".
    """

    data: str
    length: int
    model: str
    ablation: str
    seed: int
    label: str = ""
    changes: tuple[str, ...] = ()
    trials: tuple[Cell, ...] = field(default=(), repr=False)
    model_of: Cell | None = None
    checkpoint: str = "best"

    @property
    def row(self) -> str:
        """The model with its ablation and its label."""
        return " ".join(filter(None, [self.model, self.ablation, self.label]))

    @property
    def place(self) -> Path:
        """The cell's folder in that of the runs, and with the suffix .json its file among the results."""
        model = f"{self.model}{AND}{self.ablation}".rstrip(AND)
        return Path(self.data, str(self.length), model, self.label, f"seed_{self.seed}")

    def __str__(self) -> str:
        return f"{self.data} {self.length} {self.row} seed {self.seed}"


def merged(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of which later ones replace those of the same name, and of their parts."""
    kept = {old: value for old, value in before.items() if not any(f"{old}.".startswith(f"{key}.") for key in now)}
    return {**kept, **now}


@dataclass(frozen=True)
class Settings:
    """Settings that all cells of a grid share.

    Attributes:
        configs: Folder of the fragments.
        study: Name of the fragment that all rows share.
        path: The log, if its fragment does not contain it.
        overrides: Further arguments of `seqrec fit` without dashes, such as "model.d_model=32".
        paths: Name of a log's fragments -> its file or folder, for grids of several logs.
    """

    configs: Path
    study: str
    budget: Budget
    path: str | None = None
    overrides: tuple[str, ...] = ()
    paths: Mapping[str, str] = field(default_factory=dict)

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
        # Rows of a table share their settings, whatever the log.
        return {"seed_everything": cell.seed, "recipe": False, "data": data, **config}

    def arguments(self, cell: Cell) -> dict[str, str]:
        """Return the arguments of a cell's command after its configs, without the path of the log.

        A later argument replaces an earlier one of the same name, or of a part of it. Those of the model do not apply
        to baselines, and none replaces what an ablation changes.
        """
        ablated = self._ablated(cell)
        found: dict[str, str] = {}
        for word in (*self.overrides, *cell.changes):
            key, _, value = word.partition("=")
            baseline = is_baseline(cell.model) and key.startswith("model.")
            if not baseline and ".".join(key.split(".")[:2]) not in ablated:
                found = merged(found, {key: value})
        return found

    def path_words(self, cell: Cell) -> list[str]:
        """Return the words that give the path of a cell's log."""
        path = self._path(cell)
        return [] if path is None else ["--data.source.path", path]

    def _path(self, cell: Cell) -> str | None:
        return self.paths.get(cell.data, self.path)

    def record(self, cell: Cell) -> dict[str, Any]:
        """Return everything that decides a cell's numbers, except the log's events, the code and the machine.

        The log enters by its name: results stay valid if folders move.
        """
        path = self._path(cell)
        record = {
            "fragments": {
                f"{file.parent.name}/{file.stem}": yaml.safe_load(file.read_text(encoding="utf-8"))
                for file in self.fragments(cell)
            },
            "config": self.config(cell),
            "arguments": self.arguments(cell),
            "log": None if path is None else Path(path).name,
            "model_of": None if cell.model_of is None else self.record(cell.model_of),
            "checkpoint": cell.checkpoint,
        }
        # As it is read from a file.
        return dict(json.loads(json.dumps(record)))

    def applies(self, cell: Cell) -> bool:
        """Return whether the model has the arguments that its ablation changes."""
        known = inspect.signature(MODELS[cell.model]).parameters
        return all(key.removeprefix("model.") in known for key in self._ablated(cell) if key.startswith("model."))

    def _ablated(self, cell: Cell) -> set[str]:
        """Return the arguments that a cell's ablation sets, such as "model.dropout"."""
        if not cell.ablation:
            return set()
        content = yaml.safe_load(self._fragment("ablation", cell.ablation).read_text(encoding="utf-8"))
        return {f"{part}.{key}" for part, given in content.items() for key in given.get("init_args", given)}

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
    tune: Sequence[str] = (),
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
    tuned = [cell if is_baseline(cell.model) else _tuned(cell, min(lengths), tune) for cell in planned]
    trials = dict.fromkeys(trial for cell in tuned for trial in cell.trials)
    return [*trials, *(cell for cell in tuned if settings.applies(cell))]


def _tuned(cell: Cell, length: int, tune: Sequence[str]) -> Cell:
    """Return a cell with the trials that decide its changes: every combination of the values of `tune`."""
    choices = values_to_tune(tune)
    if not choices:
        return cell
    words = [[f"{key}={value}" for value in values] for key, values in choices.items()]
    changes = list(itertools.product(*words))
    labels = [f"{TRIALS}/{re.sub(r'[^-+.,=A-Za-z0-9_]', '_', ','.join(each))}" for each in changes]
    if len(set(labels)) < len(labels):
        raise InputError(f"tune={list(tune)} has values that differ only in signs that a file's name cannot contain")
    first = Cell(cell.data, length, cell.model, "", 0)
    trials = (replace(first, label=label, changes=each) for label, each in zip(labels, changes, strict=True))
    return replace(cell, trials=tuple(trials))


def values_to_tune(words: Sequence[str]) -> dict[str, list[str]]:
    """Return the values to try of each argument, from words such as "model.dropout=.1,.3".

    Raises:
        InputError: if a word has another form, or an argument or a value occurs twice.

    Example:
        >>> values_to_tune(["model.dropout=.1,.3", "model.loss=GBCE,{class_path: A, init_args: {b: 1}}"])
        {'model.dropout': ['.1', '.3'], 'model.loss': ['GBCE', '{class_path: A, init_args: {b: 1}}']}
    """
    found: dict[str, list[str]] = {}
    for word in words:
        key, _, text = word.partition("=")
        values = [value.strip() for value in _split(text)]
        if not key or not values or not all(values):
            raise InputError(f"tune={word!r} must name an argument and its values, as in model.dropout=.1,.3")
        if key in found or len(set(values)) < len(values):
            raise InputError(f"tune={word!r} names {'the argument' if key in found else 'a value'} twice")
        found[key] = values
    return found


def _split(text: str) -> list[str]:
    """Return the parts of a text between commas; commas within brackets are those of a part."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "{[") - (sign in "}]")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts
