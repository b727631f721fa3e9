"""Where a config has a key, and where an argument belongs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from seqrec.registry import class_named, did_you_mean

# Parts of a run that are no classes of a user's choice -> the class that has their arguments.
_PARTS = {"data": "seqrec.SequenceDataModule", "trainer": "lightning.pytorch.Trainer"}
# Keys at the top of a run's config.
RUN_KEYS = (
    *("data", "model", "trainer", "protocol", "seed_everything", "ckpt_path", "fresh_weights", "checkpoint"),
    *("early_stopping", "resume_points", "execution", "recommendations", "results"),
)
# Names that other libraries have.
_SYNONYMS = {
    "epochs": "max_epochs",
    "learning_rate": "lr",
    "gpus": "devices",
    "seed": "seed_everything",
    "workers": "num_workers",
    "checkpoint_path": "ckpt_path",
    **dict.fromkeys(("hidden_size", "hidden_dim", "embedding_dim", "dim"), "d_model"),
    **dict.fromkeys(("layers", "n_layers", "num_blocks"), "num_layers"),
    **dict.fromkeys(("maxlen", "max_len", "seq_len", "max_seq_length"), "max_length"),
}
# Names of the mapping with a class's arguments elsewhere.
_ARGUMENTS = ("args", "arguments", "kwargs", "params", "parameters", "options", "settings")


def keys_of(node: yaml.Node | None, above: str = "") -> Iterator[tuple[str, int]]:
    """Yield each key of a YAML document, with the keys above it and dots between them, and its line."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{above}{key.value}", key.start_mark.line + 1
            yield from keys_of(value, f"{above}{key.value}.")
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from keys_of(item, f"{above}{number}.")


def place_of(name: str, words: Sequence[str]) -> tuple[str, str]:
    """Return where a command has a key, as `config FILE line N: `, and the key with those above it.

    Args:
        name: The key, as the parser of a class calls it, which does not know the keys above its own.
        words: Arguments of the command, of which the last config that has the key counts.

    Returns:
        "" and the option if it was typed, or the name if neither is found.
    """
    found = ("", name)
    for typed in (word[2:].partition("=")[0] for word in words if word.startswith("--")):
        if f".{typed}".endswith(f".{name}"):
            return "", typed
    files = [Path(value) for option, value in itertools.pairwise(words) if option == "--config" and "\n" not in value]
    for file in filter(Path.is_file, files):
        for key, line in keys_of(yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)):
            if f".{key}".endswith((f".{name}", f".init_args.{name}")):
                found = (f"config {file} line {line}: ", key)
    return found


def belongs(
    name: str, above: str, kinds: Mapping[str, Sequence[type]], known: Sequence[str], *, of_run: bool, in_config: bool
) -> str:
    """Return where an argument belongs that was found at a wrong place, as the end of a sentence; "" if nowhere.

    Args:
        name: The first key that is refused, without those above it.
        above: Those above it.
        kinds: Config key -> the classes that it takes.
        known: Keys that the parser knows.
        of_run: Whether the command takes the config of a run.
        in_config: Whether a config has it, not the command line.
    """
    if name in RUN_KEYS and (above or not of_run):
        return f"{'move it to the top of the file' if of_run else 'leave it out'}: {name} is for the config of a run"
    last = [part for part in above.split(".") if part != "init_args"][-1:]
    of_class = bool(last) and last[0] in {key.rpartition(".")[2] for key in kinds}
    if above and not of_class and name in ("init_args", "class_path"):
        return f"give its keys directly below {above}, which is no class"
    if of_class and name == "class_path":
        return f"give the arguments of a class below {above}.init_args, not beside class_path"
    near = did_you_mean(name, ["init_args", "class_path"]).removeprefix("; ")
    if in_config and of_class and (near or name in _ARGUMENTS):
        return near or "did you mean init_args?"
    wanted = _SYNONYMS.get(name, name)
    if wanted != name and f"{above}.{wanted}".rpartition("init_args.")[2] in known:
        return f"did you mean {wanted}?"
    classes = {key: [class_named(path)] for key, path in _PARTS.items() if of_run} | dict(kinds)
    found = {key for key, each in classes.items() if any(wanted in inspect.signature(cls).parameters for cls in each)}
    homes = {f"{key}.{'init_args.' if key in kinds and in_config else ''}{wanted}" for key in found}
    homes |= {each for each in known if each.endswith(f".{wanted}") or (each == wanted and of_run and each in RUN_KEYS)}
    # The length is the data's. What is refused here is no home, and lists are for another command.
    homes -= {"model.max_length", "model.init_args.max_length", f"{above}.{name}"}
    homes = {home for home in homes if not home.startswith("recommendations.")}
    # A name in very many classes, such as `d_model` in every encoder, belongs to the outermost.
    parts = {*above.split(".")}
    places = sorted(homes, key=lambda home: (-len(parts & {*home.split(".")}), home.count("."), home))[:3]
    return f"use {' or '.join(place if in_config else f'--{place}' for place in places)}" if places else ""
