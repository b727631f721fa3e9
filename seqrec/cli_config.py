"""What the command line does with configs before they are parsed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from seqrec.errors import InputError
from seqrec.protocols import PRESETS, Protocol
from seqrec.specs import to_spec


def with_config_of_checkpoint(words: list[str]) -> list[str]:
    """Put the config beside a checkpoint first, where a command names a checkpoint and no config.

    Args:
        words: Words behind `seqrec`.

    Returns:
        The words, with `--config <run folder>/config.yaml` behind the command where it was put.
    """
    if any(True for _ in _values(words, "--config", "-c")):
        return words
    for path in _values(words, "--ckpt_path"):
        config = Path(path).parent.parent / "config.yaml"
        if config.is_file():
            return [words[0], "--config", str(config), *words[1:]]
    return words


def refuse_model_max_length(words: list[str]) -> None:
    """Refuse a `max_length` of the model: it is the data's, and two that differ would contradict each other.

    Args:
        words: Words behind `seqrec`.

    Raises:
        InputError: the words or a config among them give it.
    """
    places = [
        word for word in words if word.split("=")[0] in ("--model.max_length", "--model.init_args.max_length")
    ]
    for path in _values(words, "--config", "-c"):
        if not Path(path).is_file():
            continue
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        model = content.get("model") if isinstance(content, dict) else None
        if isinstance(model, dict) and "max_length" in {*model, *(model.get("init_args") or {})}:
            places.append(f"{path}: model.init_args.max_length")
    if places:
        raise InputError(
            f"{places[0]} is not accepted: a model's max_length is the data's; set data.max_length"
        )


def refuse_slurm_without_srun(plugins: object) -> None:
    """Refuse a trainer for tasks of SLURM in a process that is none.

    Args:
        plugins: `trainer.plugins` of the parsed config.

    Raises:
        InputError: SLURM's environment is among them, and `srun` did not start this process.
    """
    if "SLURMEnvironment" in str(plugins) and "SLURM_NTASKS" not in os.environ:
        raise InputError(
            "trainer.plugins has SLURMEnvironment, but SLURM_NTASKS is not set: start the command with srun in an "
            "sbatch script, or take configs/trainer/ddp.yaml"
        )


def with_protocol_presets(words: list[str]) -> list[str]:
    """Put the arguments of a preset in the place of its name, as in `--protocol sasrec-100`.

    Args:
        words: Words behind `seqrec`.

    Returns:
        The words, with the protocol as one JSON object; arguments behind it may still change parts of it.
    """
    replaced = list(words)
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option != "--protocol":
            continue
        if equals and value in PRESETS:
            replaced[number] = f"--protocol={_preset_words(value)}"
        elif not equals and number + 1 < len(words) and words[number + 1] in PRESETS:
            replaced[number + 1] = _preset_words(words[number + 1])
    return replaced


def _preset_words(name: str) -> str:
    return json.dumps(to_spec(Protocol.preset(name)))


def _values(words: list[str], *options: str) -> Iterator[str]:
    """Values of an option, given as `--option value` or `--option=value`."""
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in options:
            yield value if equals else "".join(words[number + 1 : number + 2])
