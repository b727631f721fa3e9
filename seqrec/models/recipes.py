"""Settings that suit a log: the rule behind the defaults of `seqrec fit`.

All numbers of the rule are in `choose`, each with its reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
import numpy as np

from seqrec.catalogue.table import ItemTable
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.report_table import report_table
from seqrec.encoders import ENCODERS
from seqrec.errors import InputError
from seqrec.models import presets
from seqrec.models.sequential import SequentialRecommender
from seqrec.runs.callbacks import BestCheckpoint, ResumableEarlyStopping, ValidationSteps
from seqrec.specs import arguments_from_specs, from_spec, to_spec

# Encoders that know the order of events without learned positions, which they would need to give up to be streamed.
_ORDERED = {"GRU4Rec", "HRNN", "HSTU", "MambaRec", "RecMamba", "SSD4Rec", "Samba"}
_ATTENDING = {"SASRec", "MoEMaTrRec", "BERT4Rec"}
_STEPS = "trainer.max_steps"
# Arguments of a model that its log determines, or that options name in another way.
_OF_LOG = {"num_items", "num_users", "max_length", "item_columns", "log_user_columns", "log_columns", "heads"}
# Share of the budget of a fresh run that continued training gets.
CONTINUED_SHARE = 0.25


@dataclass(frozen=True)
class LogShape:
    """Size and shape of the training part of a log.

    Attributes:
        users: Users with at least two events, of which one is a target.
        events: Events of these users.
        items: Items of the catalogue.
    """

    users: int
    events: int
    items: int

    @property
    def mean_length(self) -> float:
        """Events a user."""
        return self.events / max(1, self.users)

    @classmethod
    def of(cls, data: SequenceDataModule) -> LogShape:
        """Return the shape of a data module's log; its store is prepared if it does not exist.

        Raises:
            InputError: if no user has two training events.
        """
        store = data.store
        lengths = data.split.history_stops(store, "train") - np.asarray(store.offsets)[:-1]
        lengths = lengths[lengths > 1]
        if not len(lengths):
            raise InputError(f"{data.store_directory}: no user has two training events, there is nothing to learn")
        return cls(users=len(lengths), events=int(lengths.sum()), items=store.num_items)


@dataclass(frozen=True)
class Choice:
    """One choice of the rule.

    Attributes:
        values: Value by option of `seqrec fit`.
        reason: Why, in a few words.
    """

    values: Mapping[str, Any]
    reason: str


def choose(shape: LogShape, model: str, given: Mapping[str, Any] = MappingProxyType({})) -> list[Choice]:
    """Return the settings for a log of this size and shape.

    Args:
        shape: The training part of the log.
        model: Name of the model's class. Only for presets there is a choice of positions.
        given: Values by option that are no choice of the rule, but that it must fit to: `data.max_length`,
            `data.max_tokens`, `data.batch_size`, `trainer.max_steps`, `trainer.max_epochs`,
            `trainer.limit_train_batches`, `trainer.accumulate_grad_batches` and `validation.every_n_steps`.
    """
    mean, epoch = shape.mean_length, shape.events
    # Histories beyond these cover little more of the log: ML-1M, mean 164, has its records at 200.
    length = given.get("data.max_length") or next((each for each in (50, 100, 200, 500) if mean <= each), 1000)
    # 120 updates an epoch or more: larger batches left smaller logs undertrained. Above 8,000 no time is saved.
    tokens = max(_rounded(min(max(epoch / 120, 1000), 8000), 500), length)
    update = _events_an_update(given, tokens, mean, length)
    steps = _budget(given, epoch, update)
    seen = steps * update
    # Thirty looks at the curve, about one in each epoch of most logs.
    interval = given.get("validation.every_n_steps") or max(1, steps // 30)
    judged = min(shape.users, 10_000)
    # Few users make a noisy curve, and its best point can be far ahead.
    checks = 8 if judged >= 5000 else 15
    # SASRec's authors found .5 best on logs with means of 9 to 12, .2 on ML-1M. Smaller logs overfit sooner.
    sparse = mean < 20 or epoch < 500_000
    return [
        Choice({"data.max_length": length}, f"the first of 50, 100, .. that the mean history, {mean:.0f}, fits into"),
        Choice({"data.train_windows": {"class_path": "seqrec.StridedWindows"}}, "each event is a target once an epoch"),
        Choice({"data.max_tokens": tokens}, f"an epoch of {epoch:,} events is {epoch / update:,.0f} updates"),
        Choice({"model.d_model": 64}, "the width of our records on ML-1M; time grows with it"),
        *_positions(model),
        Choice(
            {"model.dropout": 0.5 if sparse else 0.2},
            "under 500,000 events, or 20 a user" if sparse else "500,000 events and 20 a user, or more",
        ),
        _loss(shape.items),
        _optimizer(steps),
        Choice({"trainer.max_steps": steps}, f"{steps * update / epoch:,.1f} epochs, {seen / 1e6:,.1f} million events"),
        Choice({"validation.every_n_steps": interval}, f"{steps / interval:,.0f} validations in the budget"),
        Choice({"early_stopping.patience_steps": checks * interval}, f"{checks} validations without a better one"),
        *([Choice({"data.val_users": judged}, "more make validations slow")] if judged < shape.users else []),
    ]


def choose_to_continue(
    shape: LogShape,
    model: type[SequentialRecommender],
    saved: Mapping[str, Any],
    given: Mapping[str, Any] = MappingProxyType({}),
) -> list[Choice]:
    """Return the settings for training that starts from a checkpoint: its model, and a share of the budget.

    Args:
        shape: The training part of the log as a whole.
        model: Class of the model.
        saved: Hyperparameters of the checkpoint.
        given: As for `choose`.

    Raises:
        InputError: if the checkpoint has no optimizer, as those of baselines, or names a class that it may not name.
    """
    if "optimizer" not in saved:
        raise InputError(
            "warm_start.ckpt has no settings of an optimizer, so it is of no model that is trained in steps: give a "
            "checkpoint of a SequentialRecommender"
        )
    given = {"data.max_length": saved.get("max_length"), **given}
    if not ((given.get("trainer.max_steps") or 0) > 0 or given.get("trainer.max_epochs")):
        (whole,) = (each.values[_STEPS] for each in choose(shape, model.__name__, given) if _STEPS in each.values)
        given[_STEPS] = _rounded(CONTINUED_SHARE * whole, 100)
    chosen = choose(shape, model.__name__, given)
    (optimizer,) = (each for each in chosen if "model.optimizer" in each.values)
    found = _settings_of(saved, model, optimizer.values["model.optimizer"]["init_args"]["schedule"])
    same = {name: value for name, value in found.items() if name != "optimizer"}
    choices = [Choice({f"model.{name}": value}, "as in the checkpoint") for name, value in same.items()]
    of_run = (each for each in chosen if not any(option.startswith("model.") for option in each.values))
    return [*choices, Choice({"model.optimizer": found["optimizer"]}, f"as there, but {optimizer.reason}"), *of_run]


def _settings_of(saved: Mapping[str, Any], model: type[SequentialRecommender], schedule: Any) -> dict[str, Any]:
    """Return the arguments of a checkpoint's model as options have them, with another schedule."""
    names = [name for name in inspect.signature(model).parameters if name in saved and name not in _OF_LOG]
    found: dict[str, Any] = {}
    for name, value in arguments_from_specs(model, {name: saved[name] for name in names}).items():
        spec = to_spec(value)
        if name == "event_columns":
            spec = [column.name for column in value]
        elif name == "item_table":
            found |= {f"item_table.{key}": each for key, each in spec["init_args"].items() if each not in (None, [])}
            continue
        elif name in ("time", "masking") and spec is not None:
            spec = spec["init_args"]
        elif name == "optimizer" and "schedule" in spec["init_args"]:
            spec["init_args"]["schedule"] = schedule
        if spec not in (None, []):
            found[name] = spec
    return found


def _events_an_update(given: Mapping[str, Any], tokens: int, mean: float, length: int) -> float:
    windows = given.get("data.batch_size")
    batch = given.get("data.max_tokens") or (windows * min(mean, length) if windows else tokens)
    return float(batch * (given.get("trainer.accumulate_grad_batches") or 1))


def _budget(given: Mapping[str, Any], epoch: int, update: float) -> int:
    """Return the updates of the run."""
    steps, epochs = given.get("trainer.max_steps") or 0, given.get("trainer.max_epochs") or 0
    if steps > 0 or epochs > 0:
        limit = given.get("trainer.limit_train_batches")
        updates = epoch / update * (limit if isinstance(limit, float) else 1)
        updates = min(updates, limit) if isinstance(limit, int) else updates
        return int(steps if steps > 0 else max(1, epochs * updates))
    # 30 epochs hold the records of ML-1M. Smaller logs need more of them, up to 6,000 updates. Larger logs are cut to
    # half an hour on two cores, which train on 25,000 events a second, but not to less than an epoch.
    seen = max(min(max(30 * epoch, 6_000_000), 45_000_000), epoch)
    return _rounded(max(min(seen / update, 6000), epoch / update), 100)


def _positions(model: str) -> Iterator[Choice]:
    if model in _ORDERED:
        streamed = "" if ENCODERS[model].bidirectional else ", and can then be streamed"
        yield Choice({"model.positions": False}, f"{model} knows the order of events{streamed}")
    elif model in _ATTENDING:
        yield Choice({"model.positions": True}, "attention does not know the order of events without them")


def _loss(items: int) -> Choice:
    # Above, the scores of all items would take most of the time of a step.
    most, negatives = 20_000, 2048
    # ML-1M: cosines divided by .05 beat dot products.
    cosines = {"model.item_table.temperature": 0.05}
    if items <= most:
        reason = f"{items:,} items are not too many to score them all; cosines divided by a temperature"
        return Choice({"model.loss": {"class_path": "seqrec.FullSoftmax"}, **cosines}, reason)
    sampler = {"num_negatives": negatives, "exclude_seen": False, "shared": True}
    uniform = {"class_path": "seqrec.UniformNegatives", "init_args": sampler}
    loss = {"class_path": "seqrec.SampledSoftmax", "init_args": {"negatives": uniform}}
    reason = f"{items:,} items, more than {most:,}, are too many to score them all"
    return Choice({"model.loss": loss, **cosines}, reason)


def _optimizer(steps: int) -> Choice:
    # 100 updates are enough for Adam's moments; short runs warm up for a tenth.
    warmup = min(100, steps // 10)
    schedule = {"class_path": "seqrec.WarmupCosine", "init_args": {"warmup_steps": warmup}}
    adam = {"class_path": "seqrec.Adam", "init_args": {"lr": 1e-3, "schedule": schedule}}
    return Choice({"model.optimizer": adam}, f"{warmup} updates of warm-up, then a cosine to the end of the budget")


def _rounded(value: float, unit: int) -> int:
    return max(unit, int(value / unit) * unit)


@dataclass(frozen=True)
class Recipe:
    """Settings for a model and a log, from `recipe`. `print` shows them with their reasons.

    Attributes:
        model_class: Class of the model.
        choices: The settings that the class takes.
    """

    model_class: type[SequentialRecommender]
    choices: tuple[Choice, ...]

    @property
    def values(self) -> dict[str, Any]:
        """Value by option of `seqrec fit`, such as `data.max_tokens`."""
        return {option: value for choice in self.choices for option, value in choice.values.items()}

    def configure(self, data: SequenceDataModule) -> None:
        """Set length, batches, windows and users of validation of a data module that has made no loader yet."""
        for name, value in self._part("data").items():
            setattr(data, name, from_spec(value))

    def model(self, data: SequenceDataModule, **arguments: Any) -> SequentialRecommender:
        """Return a fresh model of a data module's items; `arguments` win over the recipe."""
        given = {name: from_spec(value) for name, value in self._part("model").items()}
        if "item_table" in given:
            given["item_table"] = ItemTable(**given["item_table"])
        return self.model_class(data.num_items, **{"max_length": data.max_length, **given, **arguments})

    def trainer(self, **arguments: Any) -> pl.Trainer:
        """Return a trainer with budget, validations, early stopping and `BestCheckpoint`; `arguments` win.

        `callbacks` are added to those of the recipe.
        """
        values, monitor = self.values, "val_NDCG@10"
        callbacks = [
            ValidationSteps(values["validation.every_n_steps"]),
            ResumableEarlyStopping(monitor, patience_steps=values["early_stopping.patience_steps"]),
            BestCheckpoint(monitor=monitor, filename="best"),
            *arguments.pop("callbacks", []),
        ]
        return pl.Trainer(**{**self._part("trainer"), "callbacks": callbacks, **arguments})

    def _part(self, part: str) -> dict[str, Any]:
        """Return the values of the options below one name, nested as in a config."""
        found: dict[str, Any] = nested(self.values).get(part, {})
        return found

    def __str__(self) -> str:
        rows = [[option, shown(value), c.reason] for c in self.choices for option, value in c.values.items()]
        return str(report_table(["option", "value", "reason"], rows, words=3))


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted option as nested mappings.

    Example:
        >>> nested({"data.max_length": 50, "data.max_tokens": 1000})
        {'data': {'max_length': 50, 'max_tokens': 1000}}
    """
    found: dict[str, Any] = {}
    for option, value in values.items():
        *parts, last = option.split(".")
        place = found
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    return found


def shown(value: Any) -> str:
    """Return a value in a line: classes by their names, with their arguments."""
    if not isinstance(value, dict):
        return str(value)
    arguments = ", ".join(f"{name}={shown(each)}" for name, each in value.get("init_args", {}).items())
    name = str(value["class_path"]).rpartition(".")[2]
    return f"{name}({arguments})" if arguments else name


def recipe(data: SequenceDataModule, model: str | type[SequentialRecommender]) -> Recipe:
    """Return settings that suit the log of a data module; its store is prepared if it does not exist.

    `seqrec fit` uses the same rule for all that a config or the command line does not set.

    Args:
        data: The log.
        model: A preset's name, or a class.

    Raises:
        InputError: if no preset has that name, or no user has two training events.

    Example:
        >>> import tempfile
        >>> from seqrec import Filters, SequenceDataModule, Synthetic, prepare, recipe
        >>> source = Synthetic(num_users=20, num_items=30, mean_events=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = prepare(source, Filters(), f"{folder}/store")
        ...     log = SequenceDataModule(source, store=f"{folder}/store")
        ...     found = recipe(log, "SASRec")
        ...     found.configure(log)
        ...     log.max_length, found.model(log).title, found.trainer(accelerator="cpu", logger=False).max_steps
        (50, 'SASRec', 6000)
    """
    if isinstance(model, str) and model not in presets.__all__:
        raise InputError(f"model={model!r} must be one of {', '.join(presets.__all__)}, or a class")
    cls = getattr(presets, model) if isinstance(model, str) else model
    known = inspect.signature(cls).parameters
    chosen = choose(LogShape.of(data), cls.__name__)
    fits = (c for c in chosen if all(o.split(".")[1] in known for o in c.values if o.startswith("model.")))
    return Recipe(cls, tuple(fits))
