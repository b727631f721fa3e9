"""Short help: the table of commands, and the options of a run that most people set first."""

from __future__ import annotations

import re
import textwrap
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Iterator, Mapping

from seqrec.cli.errors import classes_of
from seqrec.cli.parsing import COMMON

WIDTH, COLUMN = 110, 34
ABOUT = "Train, compare and serve sequential recommenders on long histories."
# Heading -> option -> text; if that is empty, the first sentence of the parser's own. The options of a model are known
# only once its class is, so those here are the usual ones.
GROUPS = {
    "config and checkpoint": {
        "config": "a YAML file, or a config of the package (see `seqrec configs`); later ones change earlier ones",
        "print_config": "print the whole config, and stop",
        "ckpt_path": "a checkpoint, a run folder, a folder of runs, or `last`",
        "seed_everything": "seed of weights, order and draws",
        "recipe": "",
    },
    "data": {
        "data.source": "the raw log",
        "data.store": "",
        "data.split": "which events are held out",
        "data.targets": "condition for the events that are trained for and judged",
        "data.max_length": "",
        "data.train_windows": "which windows of a history an epoch trains on",
        "data.batch_size": "",
        "data.max_tokens": "",
        "data.eval_batch_size": "",
        "data.val_users": "",
        "data.num_workers": "",
        "data.memory_limit": "",
        "data.prepare_workers": "",
    },
    "model": {
        "model": "the model; its options are listed by --model.help CLASS",
        "model.d_model": "width of the model",
        "model.num_layers": "number of blocks",
        "model.dropout": "share of values that training drops",
        "model.loss": "the objective",
        "model.optimizer": "the optimiser",
        "model.optimizer.lr": "step size",
    },
    "evaluation": {
        "protocol": "candidates and ties of the evaluation",
        "baselines.enabled": "whether baselines are compared with the model; by default unless the log is large",
        "lists.metrics": "metrics of the lists themselves, such as Coverage, Gini, Novelty, Diversity",
        "exposures.path": "log of items shown at random, among which the test also ranks",
    },
    "training": {
        "trainer.max_steps": "number of updates; early stopping may end training before",
        "trainer.max_epochs": "the same as a number of epochs",
        "trainer.max_time": "longest training time, as DD:HH:MM:SS",
        "trainer.accelerator": "cpu, gpu or auto",
        "trainer.devices": "number of devices, or auto",
        "trainer.precision": "32-true, bf16-mixed or 16-mixed",
        "trainer.gradient_clip_val": "largest norm of the gradient",
        "trainer.logger": "where metrics go; --trainer.logger.name X names the folder of the runs",
        "early_stopping.monitor": "metric that early stopping watches",
        "validation.every_n_steps": "",
        "early_stopping.patience_steps": "",
        "early_stopping.patience": "validations without improvement before training stops",
        "checkpoint.monitor": "metric that chooses the best checkpoint",
        "resume_points.every_minutes": "",
        "execution.compile": "",
        "graphed_step.enabled": "",
    },
    "this command": dict.fromkeys(
        ("overwrite", "input", "duplicates", "late", "what", "min_lr", "max_lr", "steps", "max_batch_size"), ""
    ),
}
LEFT_OUT = {
    **dict.fromkeys(("prepare", "append", "compact"), ("model", "evaluation", "training")),
    "tune": ("evaluation",),
    **dict.fromkeys(("validate", "test", "predict"), ("training",)),
}


def overview(summaries: Mapping[str, str], group: str = "") -> str:
    """Return the help of `seqrec`, or that of a group of commands such as `benchmark`."""
    shown = {name: line for name, line in summaries.items() if name.startswith(group)}
    width = max(map(len, shown))
    lines = [f"  {name.ljust(width)}  {line}" for name, line in shown.items()]
    usage = f"usage: seqrec {f'{group} ' if group else ''}COMMAND [options]"
    return "\n".join([usage, "", ABOUT, "", *lines, "", "`seqrec COMMAND --help` lists the options of a command."])


def short_help(parser: ArgumentParser, command: str) -> str:
    """Return the help of a run's command, with defaults and descriptions of its parser."""
    actions = {action.dest: action for action in parser._actions}
    lines = [f"usage: seqrec {command} --config CONFIG [options]", "", parser.description or ""]
    for heading, texts in GROUPS.items():
        rows = [
            line
            for name, text in texts.items()
            if name in actions or name.startswith("model.")
            for line in _option(name, text, actions.get(name))
        ]
        if rows and heading not in LEFT_OUT.get(command, ()):
            lines += ["", f"{heading}:", *rows]
    lines += ["", "more:", *_rows("--help-all", "every option, also of the trainer and of all callbacks")]
    lines += _rows("--KEY.help [CLASS]", "the options of one part: --model.help SASRec, --trainer.help")
    lines += [line for option, text in COMMON.items() for line in _rows(f"--{option}", text)]
    return "\n".join(lines) + "\n"


def _option(name: str, text: str, action: Action | None) -> Iterator[str]:
    text = text or _first_sentence(action.help if action else "")
    if action is not None and (known := sorted(cls.__name__ for cls in classes_of(name, exact=True))):
        text += f": {', '.join(known)}"
    default = None if action is None else action.default
    if isinstance(default, (bool, int, float, str)) and default != SUPPRESS:
        text += f" (default: {default})"
    yield from _rows("--ckpt" if name == "ckpt_path" else f"--{name}", text)


def _rows(option: str, text: str) -> Iterator[str]:
    first, *others = textwrap.wrap(text, WIDTH - COLUMN) or [""]
    yield f"  {option.ljust(COLUMN - 3)} {first}"
    yield from (" " * COLUMN + line for line in others)


def _first_sentence(text: str | None) -> str:
    found = re.split(r"(?<=[^.])[.;](?:\s|$)", (text or "").strip(), maxsplit=1)[0]
    return found[:1].lower() + found[1:]
