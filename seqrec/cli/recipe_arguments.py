"""The arguments of `seqrec fit` that nothing sets, chosen by the rule of `seqrec.models.recipes`."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from seqrec.cli.run_config import content_of
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.report_table import ReportTable, report_table
from seqrec.models.recipes import LogShape, choose, choose_to_continue, nested, shown
from seqrec.runs.checkpoints import read_checkpoint
from seqrec.runs.finding import find_checkpoint

# Option of the rule -> options that do its work: if one of them is set, the rule leaves its own out.
_BY_EPOCHS = ("trainer.check_val_every_n_epoch", "trainer.val_check_interval")
_INSTEAD = {
    "data.max_tokens": ("data.batch_size", "data.bucket_by_length"),
    "model.item_table.temperature": ("model.loss",),
    "trainer.max_steps": ("trainer.max_epochs",),
    "validation.every_n_steps": _BY_EPOCHS,
    "early_stopping.patience_steps": ("early_stopping.patience", *_BY_EPOCHS),
}
# Of these single arguments may be set, which change the rule's choice; of others, an argument replaces the whole.
_IN_PARTS = ("model.optimizer",)
# Parts of a key that only mark where a class is.
_FORM = ("init_args", "class_path")


def explicit_options(argv: Sequence[str]) -> dict[str, Any]:
    r"""Return the options that arguments and their configs set, without `init_args`; a class is under its option.

    Example:
        >>> explicit_options(["--config", "data: {max_length: 9}\n", "--model.init_args.optimizer.lr=0.1"])
        {'data.max_length': 9, 'model.optimizer.lr': 0.1}
    """
    found: dict[str, Any] = {}
    for word, following in itertools.pairwise([*argv, ""]):
        option, equals, text = word.partition("=")
        text = text if equals else following
        if option == "--config":
            config = content_of(text)
            own = config.get("fit")
            _flatten(own if isinstance(own, dict) else config, "", found)
        elif option.startswith("--"):
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError:
                value = text
            _flatten(value, ".".join(part for part in option[2:].split(".") if part not in _FORM), found)
    return found


def _flatten(value: Any, key: str, found: dict[str, Any]) -> None:
    if not isinstance(value, dict) or not value:
        found[key.rstrip("+")] = value
        return
    for name, inner in value.items():
        _flatten(inner, key if name in _FORM else f"{key}.{name}".lstrip("."), found)


def chosen_arguments(
    data: SequenceDataModule, model: type, argv: Sequence[str], config: Mapping[str, Any]
) -> tuple[dict[str, Any], ReportTable]:
    """Return the arguments that the rule chooses, nested as in a config, and a table of them for people.

    Args:
        data: The log; its store is prepared if it does not exist.
        model: Class of the model.
        argv: Arguments of the command, as `expand` returns them. What they set is no choice.
        config: Value of each option, nested, defaults included.

    Raises:
        InputError: if `warm_start.ckpt` is not found, or of a model without an optimizer.
        CheckpointError: if it is no checkpoint.
    """
    explicit, ckpt = explicit_options(argv), _value(config, "warm_start.ckpt")
    given = {option: _value(config, option) for option in explicit if option.startswith(("data.", "trainer.", "valid"))}
    if config["trainer"].get("fast_dev_run"):
        given["trainer.max_steps"] = explicit["trainer.max_epochs"] = 1
    parameters = inspect.signature(model).parameters
    values: dict[str, Any] = {}
    rows: list[list[str]] = []
    yours: list[str] = []
    shape = LogShape.of(data)
    if ckpt is None:
        choices, instead = choose(shape, model.__name__, given), _INSTEAD
        title = "chosen by the size of the log (--recipe false: none; see the guide, training)"
    else:
        # The fit verifies it.
        path = Path(find_checkpoint(ckpt, argument="warm_start.ckpt="))
        saved = read_checkpoint(path, mapped=True, verify=False)
        choices = choose_to_continue(shape, model, saved.get("hyper_parameters", {}), given)
        # The model's settings belong together.
        instead = {name: others for name, others in _INSTEAD.items() if not name.startswith("model.")}
        title = f"chosen to continue from {ckpt} (--recipe false: nothing; see the guide, training)"
    for choice in choices:
        for option, value in choice.values.items():
            if option.startswith("model.") and option.split(".")[1] not in parameters:
                continue
            if _is_set(option, value, explicit, instead):
                yours.append(option)
                continue
            values[option] = value
            rows.append([option, shown(value), choice.reason])
    notes = [f"not chosen, because these or others in their place are set: {', '.join(yours)}"] if yours else []
    return nested(values), report_table(["option", "value", "reason"], rows, words=3, title=title, notes=notes)


def _is_set(option: str, value: Any, explicit: Mapping[str, Any], instead: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether an option is set, a part of it, all that contains it (to null), or one that does its work."""
    if option in _IN_PARTS:
        same = value["class_path"].rpartition(".")[2]
        return bool(str(explicit.get(option, same)).rpartition(".")[2] != same)
    above = [".".join(option.split(".")[:count]) for count in range(1, option.count(".") + 1)]
    if any(each in explicit and explicit[each] is None for each in above):
        return True
    names = (option, *instead.get(option, ()))
    return any(key == name or key.startswith(f"{name}.") for key in explicit for name in names)


def _value(config: Mapping[str, Any], option: str) -> Any:
    """Return the value of an option in a config of nested mappings; None if it has none."""
    value: Any = config
    for name in option.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
