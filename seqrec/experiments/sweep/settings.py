"""Settings of a sweep, checked before anything runs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from seqrec.errors import InputError, check_at_least, first_difference
from seqrec.registry import did_you_mean
from seqrec.runs.config_files import find_config

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

FILE_NAME = "sweep.yaml"
# Type of a parameter -> required keys, and optional keys.
KEYS = {
    "float": ({"low", "high"}, {"log", "step"}),
    "int": ({"low", "high"}, {"log", "step"}),
    "categorical": ({"choices"}, set[str]()),
}


def optuna() -> Any:
    """Return the package that sweeps need; raise InputError if it is not installed."""
    try:
        return importlib.import_module("optuna")
    except ImportError:
        message = 'a sweep needs Optuna, which is not installed: pip install "seqrec[sweep]"'
        raise InputError(message) from None


@dataclass(frozen=True)
class SweepSettings:
    """The settings of a sweep.

    Attributes:
        folder: Folder of the study, the trials' runs and the best config.
        configs: Configs of each trial's `fit`; later ones override earlier ones.
        parameters: Dotted key of the command line, such as `model.optimizer.lr`, -> `type: float` or `int` with `low`
            and `high` (both included), and `log: true` or `step`; or `type: categorical` with `choices`.
        fixed: Dotted key -> value, the same in all trials.
        metric: Metric of validation that compares trials.
        direction: maximize or minimize.
        trials: Number of trials, pruned and failed ones included.
        pruner: `class_path`, a class of `optuna.pruners`, and its `init_args`; None prunes none.
        sampler: Likewise of `optuna.samplers`.
        seed: Seed of the sampler.

    Example:
        >>> lr = {"type": "float", "low": 1e-4, "high": 0.1, "log": True}
        >>> settings = SweepSettings("sweep", ["small.yaml"], {"model.optimizer.lr": lr}, trials=3)
        >>> settings.distributions()["model.optimizer.lr"].high
        0.1
    """

    folder: str
    configs: list[str]
    parameters: dict[str, dict[str, Any]]
    fixed: dict[str, Any] = field(default_factory=dict)
    metric: str = "val_NDCG@10"
    direction: Literal["maximize", "minimize"] = "maximize"
    trials: int = 20
    pruner: dict[str, Any] | None = None
    sampler: dict[str, Any] = field(default_factory=lambda: {"class_path": "TPESampler"})
    seed: int = 0

    def check(self) -> None:
        """Raise InputError, with the key, if no trial could run with the settings."""
        if not self.parameters:
            raise InputError("parameters is empty: name one, as in model.optimizer.lr: {type: float, ..}")
        check_at_least(1, trials=self.trials)
        if both := sorted(set(self.parameters) & set(self.fixed)):
            raise InputError(f"{both[0]} is in parameters and in fixed: leave one out")
        for config in self.configs:
            find_config(config)
        self.distributions()
        self.make_pruner()
        self.make_sampler(0)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's distributions by key, in an order that does not depend on the YAML's."""
        return {key: _distribution(f"parameters.{key}", self.parameters[key]) for key in sorted(self.parameters)}

    def make_pruner(self) -> BasePruner:
        """Return Optuna's pruner."""
        spec = {"class_path": "NopPruner"} if self.pruner is None else self.pruner
        pruner: BasePruner = _build("pruner", optuna().pruners, "Pruner", spec)
        return pruner

    def make_sampler(self, number: int) -> BaseSampler:
        """Return Optuna's sampler of the n-th choice, seeded by n: a resumed sweep chooses as an uninterrupted one."""
        seed = self.seed + number
        sampler: BaseSampler = _build("sampler", optuna().samplers, "Sampler", self.sampler, seed=seed)
        return sampler

    def write(self) -> None:
        """Write the settings into the folder; raise InputError if it contains another sweep."""
        file = Path(self.folder) / FILE_NAME
        mine = asdict(self)
        if file.is_file():
            theirs = yaml.safe_load(file.read_text(encoding="utf-8"))
            for key, value in mine.items():
                if key not in ("trials", "folder") and theirs.get(key) != value:
                    other = first_difference(key, theirs.get(key), value)
                    raise InputError(f"{self.folder} contains a sweep with {other}: choose another folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(mine, sort_keys=False), encoding="utf-8")

    @staticmethod
    def read(folder: Path | str) -> SweepSettings:
        """Return the settings that `write` wrote."""
        return SweepSettings(**yaml.safe_load((Path(folder) / FILE_NAME).read_text(encoding="utf-8")))


def _distribution(key: str, given: Any) -> Any:
    if not isinstance(given, Mapping) or given.get("type") not in KEYS:
        raise InputError(f"{key} must have a type, one of {', '.join(KEYS)}, as in {{type: int, low: 1, high: 4}}")
    kind = given["type"]
    needed, allowed = KEYS[kind]
    named = set(given) - {"type"}
    if wrong := sorted(named - needed - allowed):
        raise InputError(f"{key}.{wrong[0]} is not known; {kind} takes {', '.join(sorted(needed | allowed))}")
    if missing := sorted(needed - named):
        raise InputError(f"{key}.{missing[0]} is missing")
    kinds: Any = optuna().distributions
    if kind == "categorical":
        choices = given["choices"]
        if not isinstance(choices, list) or not choices or any(isinstance(x, (list, dict)) for x in choices):
            raise InputError(f"{key}.choices={choices!r} must be a list of plain values")
        return kinds.CategoricalDistribution(choices)
    number = float if kind == "float" else int
    values = {name: _number(f"{key}.{name}", given[name], number) for name in named - {"log"}}
    if "log" in given:
        values["log"] = given["log"]
    if values["low"] >= values["high"]:
        raise InputError(f"{key}.low={values['low']} must be below high={values['high']}")
    try:
        return (kinds.FloatDistribution if kind == "float" else kinds.IntDistribution)(**values)
    except ValueError as error:
        raise InputError(f"{key}: {error}") from None


def _number(key: str, given: Any, kind: type) -> Any:
    try:
        # YAML reads 1e-4 as text.
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(given, bool) or not math.isfinite(value) or (kind is int and value != int(value)):
        raise InputError(f"{key}={given!r} must be {'a number' if kind is float else 'an integer'}")
    return kind(value)


def _build(key: str, module: Any, suffix: str, spec: Any, **arguments: Any) -> Any:
    known = [name for name in dir(module) if name.endswith(suffix) and not name.startswith("Base")]
    name = spec.get("class_path") if isinstance(spec, Mapping) else None
    if name not in known:
        hint = did_you_mean(str(name), known)
        raise InputError(f"{key}.class_path={name!r} is not known; known: {', '.join(known)}{hint}")
    if wrong := sorted(set(spec) - {"class_path", "init_args"}):
        raise InputError(f"{key}.{wrong[0]} is not known; it takes class_path and init_args")
    try:
        return getattr(module, name)(**(spec.get("init_args") or {}), **arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"{key}.init_args: {error}") from None
