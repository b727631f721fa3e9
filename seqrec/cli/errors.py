"""Refusals of the argument parser in one line: what was refused, what is allowed, what was probably meant."""

from __future__ import annotations

import ast
import inspect
import itertools
import os
import re
import shlex
import traceback
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from seqrec.errors import InputError
from seqrec.registry import class_named, concrete_subclasses, did_you_mean

# Config key -> the base class of the classes that it takes.
KINDS = {
    "data.source": "seqrec.Source",
    "data.split": "seqrec.Split",
    "data.train_windows": "seqrec.TrainWindows",
    "model": "seqrec.Recommender",
    "model.encoder": "seqrec.SequenceEncoder",
    "model.loss": "seqrec.Loss",
    "model.loss.negatives": "seqrec.NegativeSampler",
    "model.loss.extra": "seqrec.NegativeSampler",
    "model.optimizer": "seqrec.training.optim.OptimizerFactory",
    "model.optimizer.table": "seqrec.training.optim.TableOptimizer",
    "model.optimizer.schedule": "seqrec.training.optim.Schedule",
    "protocol": "seqrec.Protocol",
    "protocol.candidates": "seqrec.evaluation.protocols.Candidates",
    "protocol.split": "seqrec.Split",
    "search": "seqrec.catalogue.search.ItemSearch",
}
# Arguments that a message lists.
_MOST = 24
# Keys that are no part of a run's config.
_OF_OTHERS = ("search", "sessions")
# Config key -> the classes that it takes, which share no base.
CHOICES = {"sessions": ("seqrec.InMemoryStore", "seqrec.SQLiteStore", "seqrec.RedisStore")}
# Command -> one that has all that is required, without `seqrec`.
EXAMPLES = {
    "prepare": "prepare --config quickstart",
    "fit": "fit --config quickstart",
    **{command: f"{command} --ckpt last" for command in ("validate", "test", "predict", "recommend", "serve")},
    "tune": "tune lr --config quickstart",
    "sweep": "sweep --config sweep/quickstart",
    "compare": "compare runs/a/version_0 runs/b/version_0",
    "inspect": "inspect stores/mine",
    "report": "report runs/paper",
}
# Config key -> the base class of Lightning's classes that it takes, which are too many to list.
_LIGHTNINGS = {
    "trainer.logger": "lightning.pytorch.loggers.Logger",
    "trainer.callbacks": "lightning.pytorch.callbacks.Callback",
}
# Messages of jsonargparse for a name or a path that is no class of the kind that a key takes.
UNKNOWN_CLASS = (
    r"(?:Expected a dot import path string|Unexpected import path format): ([^\n]+)|"
    r"given class_path '([^']+)':\s+module \S+ has no attribute|"
    r"given class_path '((?P<module>\w+)[^']*)':\s+No module named '(?P=module)'|"
    r"does not correspond to a subclass of .*?Given value: ([^\n]+)"
)
# Parts of a run that are no classes of a user's choice -> the class that has their arguments.
_PARTS = {"data": "seqrec.SequenceDataModule", "trainer": "lightning.pytorch.Trainer"}
# Keys at the top of a run's config.
RUN_KEYS = (
    *("data", "model", "trainer", "protocol", "seed_everything", "ckpt_path", "fresh_weights", "checkpoint"),
    *("early_stopping", "resume_points", "execution", "graphed_step", "recommendations", "results"),
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
# Ends of the names of files that are given where a class is wanted.
_ENDS = "csv|tsv|txt|dat|inter|parquet|json|jsonl|ya?ml|ckpt|pth?|sqlite3?|db|gz|zip|zst|bz2|xz|npz"
# Part of a message of jsonargparse for a value of another type, and what the types are called here.
_EXPECTED = r"Expected an? (<class '\w+'>|typing\.Literal\[[^\]]*\])"
_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
# Messages of torch.distributed if the process at the other end of a connection has gone.
LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


def refusal_in_one_line(message: str, parser: ArgumentParser, error: BaseException | None) -> str:
    """Return as one line the message and the exception of a parser, which is that of a command or of one class."""
    ours = our_error(error)
    if ours is not None:
        return str(ours)
    denied = re.search(r"Importing '([\w.]+)' is not allowed", message)
    if denied:
        return (
            f"{denied[1]} is not a class of seqrec, and the config of a checkpoint's run names it. If you trust its "
            f"package, add --trust {denied[1].partition('.')[0]}, or give the config yourself: --config FILE"
        )
    option = re.search(
        r"accept option '([^']+)'|Option '([^']+)' is not accepted|unrecognized arguments: (\S+)", message
    )
    if option and option[3] and not option[3].startswith("-"):
        return _without_option(option[3])
    if option:
        name = next(group for group in option.groups() if group).lstrip("-").partition("=")[0]
        return _unknown_argument(name, parser)
    alone = re.search(r"argument (--([\w.]+)): expected one argument", message)
    if alone:
        kinds = [str(getattr(each, "_typehint", "")) for each in parser._actions if each.dest == alone[2]]
        return f"{alone[1]} needs a value: give {'true or false' if 'bool' in str(kinds) else 'one'} after it"
    key = re.search(r'Parser key "([^"]+)"', message)
    file = re.search(r"Config file loop detected: (.+?) -> ", message, re.DOTALL)
    if key and file:
        return _unknown_class(key[1], file[1].strip())
    path = re.search(UNKNOWN_CLASS, message, re.DOTALL)
    if key and path:
        return _unknown_class(key[1], next(group for group in path.groups() if group))
    missing = re.fullmatch(r"the following arguments are required: ([\w., ]+)", message)
    if missing:
        return _missing_arguments(missing[1].split(", "), parser)
    if key and (shape := _wrong_shape(key[1], message, parser)):
        return shape
    wrong = re.search(r"(?:Got|Given) value: (.*)", message)
    expected = {text for text in re.findall(_EXPECTED, message) if "NoneType" not in text}
    if key and wrong and expected:
        kinds = [re.sub(r"<class '(\w+)'>", lambda found: _TYPES.get(found[1], found[1]), each) for each in expected]
        allowed = " or ".join(re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", kind) for kind in sorted(kinds))
        return f"{place_of(key[1], getattr(parser, 'given', ()))[0]}{key[1]}={wrong[1]} must be {allowed}"
    lines = [line.strip(" -") for line in message.splitlines()]
    return " ".join(line for line in lines if line and "<class 'NoneType'>" not in line)


def our_error(error: BaseException | None) -> InputError | None:
    """Return the `InputError` that caused an exception; None if another error did."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def in_one_line(error: BaseException) -> str | None:
    """Return what a user should read of an exception, without its traceback; None if it is a bug of ours."""
    ours = our_error(error)
    if ours is not None:
        # A loader process passes on its whole traceback as the message.
        return str(ours).rpartition(f"{type(ours).__name__}: ")[2].strip()
    text = str(error)
    package = re.search(r"given class_path '[\w.]*?(\w+)':\s+Requirement '([\w-]+)[^']*' not met", text)
    if package:
        return f"{package[1]} needs a package that is not installed: pip install {package[2]}"
    files = [frame.filename.replace("\\", "/") for frame in traceback.extract_tb(error.__traceback__)]
    in_loader = any(file.endswith("torch/utils/data/dataloader.py") for file in files)
    if in_loader and isinstance(error, (RuntimeError, OSError, EOFError)):
        process = re.search(r"pid(?:\(s\))? ([\d, ]+)", text)
        return (
            f"a loader process{f' ({process[1]})' if process else ''} ended unexpectedly, most often because memory "
            "ran out: lower --data.num_workers (0 reads in the main process) or --data.batch_size, or give the job "
            "more memory"
        )
    # A broken pipe or a failed download is an OSError, and does not come from another process of the job.
    if isinstance(error, RuntimeError) and any(words in text for words in LOST_RANK):
        return f"another rank of this job has ended, and its own message says why ({text.splitlines()[0]})"
    return None


def classes_of(key: str, *, exact: bool = False) -> list[type[Any]]:
    """Return the classes that a config key takes; unless `exact`, its last part is enough, as class parsers name it."""
    if key in CHOICES:
        return [class_named(path) for path in CHOICES[key]]
    bases = [path for full, path in KINDS.items() if full == key or (not exact and _last(full) == _last(key))]
    return list(concrete_subclasses(class_named(bases[0]))) if bases else []


def _unknown_class(key: str, path: str) -> str:
    if "/" in path or "\\" in path or os.path.exists(path) or re.fullmatch(rf"[^.]+\.(?:{_ENDS})", path):
        argument = "url" if "://" in path else "path"
        option = {"model": "--ckpt_path", "trainer.logger": "--trainer.logger.save_dir"}.get(key)
        takers = [cls.__name__ for cls in classes_of(key) if argument in inspect.signature(cls).parameters]
        takers.sort(key=lambda name: name not in ("Table", "SQLiteStore"))
        value = shlex.quote(path)
        if option or takers:
            instead = f"{option} {value}" if option else f"--{key} {takers[0]} --{key}.{argument} {value}"
            return f"{key} is a class, not a file: {path!r}; did you mean {instead}?"
    known = sorted({cls.__name__ for cls in classes_of(key)})
    if key == "protocol":
        from seqrec.evaluation.protocols import PRESETS

        known += sorted(PRESETS)
    allowed = f"; known: {', '.join(known)}" if known else "; give a name of Lightning"
    theirs = concrete_subclasses(class_named(_LIGHTNINGS[key])) if key in _LIGHTNINGS else ()
    hint = did_you_mean(_last(path), [*known, *(cls.__name__ for cls in theirs)])
    return f"{key}: unknown class {path!r}{allowed}, or the import path of your own{hint}"


def _wrong_shape(key: str, message: str, parser: ArgumentParser) -> str | None:
    """Return why a value has not the form that a key takes: a class, or keys; None if the form is right."""
    where, full = place_of(key, getattr(parser, "given", ()))
    text = re.search(r"Unable to load config '(.*?)'", message)
    if text:
        dests = [action.dest for action in parser._actions]
        keys = [dest for dest in dests if dest.startswith(f"{key}.") and not dest.endswith(".help")]
        return f"{where}{full} must be keys, such as {', '.join(keys[:3])}, not the text {text[1]!r}"
    given = re.search(r"Given value: ([\[{].*)", message, re.DOTALL)
    if not given or not classes_of(key):
        return None
    form = "give the name of a class, or class_path and init_args"
    try:
        value = ast.literal_eval(given[1])
    except (ValueError, SyntaxError):
        return None
    others = [name for name in value if name not in ("class_path", "init_args", "dict_kwargs")]
    if isinstance(value, dict) and others and "class_path" in value:
        where = place_of(f"{key}.{others[0]}", getattr(parser, "given", ()))[0]
        return f"{where}unknown key {f'{full}.{others[0]}'!r}; use {full}.init_args.{others[0]}"
    found = (
        f"a {type(value).__name__}" if isinstance(value, list) else f"{', '.join(value) or 'nothing'}, no class_path"
    )
    return f"{where}{full} has {found}: {form}"


def _missing_arguments(names: list[str], parser: ArgumentParser) -> str:
    """Return a message that names what is missing, with a command that has it.

    Parsers of a class do not know the keys above their own, so the classes that require an argument are named.
    """
    command = getattr(parser, "command", "") or names[0].partition(".")[0]
    names = [name.removeprefix(f"{command}.") for name in names]
    required = f"the argument {names[0]!r} is required" if len(names) == 1 else f"{', '.join(names)} are required"
    given = f"give {' and '.join(f'--{name}' for name in names)}"
    if command in EXAMPLES:
        return f"{required}: {given}, here or in --config FILE; for example: seqrec {EXAMPLES[command]}"
    places = [
        f"--{key}.{names[0]} ({cls.__name__})"
        for key in (*KINDS, *CHOICES)
        for cls in classes_of(key)
        if (parameter := inspect.signature(cls).parameters.get(names[0])) and parameter.default is parameter.empty
    ]
    words = getattr(parser, "given", ())
    places += [f"--{key}.{names[0]}" for key in _LIGHTNINGS if any(word.startswith(f"--{key}") for word in words)]
    return f"{required}: {'give ' + ' or '.join(places) if places else given}"


def _unknown_argument(name: str, parser: ArgumentParser) -> str:
    known = [action.dest for action in parser._actions if action.option_strings and "help" not in action.dest]
    where, full = place_of(name, getattr(parser, "given", ()))
    # The first key that is refused, and those above it that are not.
    parts = name.split(".")
    count = next((n for n in range(1, len(parts)) if not _has_prefix(known, ".".join(parts[:n]))), len(parts))
    refused, parent = parts[count - 1], ".".join(parts[: count - 1])
    above = full.removesuffix(name).removesuffix(".")
    above = ".".join(part for part in (above, parent) if part)
    shown = f"{where}unknown {'key' if where else 'argument'} {'.'.join(part for part in (above, refused) if part)!r}"
    if refused in ("optimizer", "lr_scheduler") and not above:
        instead = "model.optimizer" if refused == "optimizer" else "model.optimizer.schedule"
        names = ", ".join(sorted({cls.__name__ for cls in classes_of(instead)}))
        return f"{shown}: it is set at the model: --{instead}, one of {names}"
    of_run = getattr(parser, "of_run", False)
    if refused in EXAMPLES and not above:
        return f"{shown}: leave it out, with its keys at the top"
    siblings = sorted(each for each in known if each.rpartition(".")[0] == parent)
    near = did_you_mean(".".join(parts[:count]), siblings).removeprefix("; ")
    if of_run or not near:  # the classes need torch, which a misspelt option of another command need not wait for
        kinds = {key: classes_of(key, exact=True) for key in (*KINDS, *CHOICES) if (key in _OF_OTHERS) != of_run}
        if home := belongs(refused, above, kinds, known, of_run=of_run, in_config=bool(where)):
            return f"{shown}; {home}"
    allowed = f"allowed here: {', '.join(each.rpartition('.')[2] for each in siblings) or 'none'}"
    command = getattr(parser, "command", None)  # the parser of a class has none
    if len(siblings) > _MOST and (parent or command):
        option = f"--{parent}.help" if parent else f"seqrec {command} --help"
        allowed = f"{option} lists what is allowed"
    return f"{shown}; {f'{near} ' if near else ''}{allowed}"


def _without_option(word: str) -> str:
    """Return a refusal of a word that belongs to no option."""
    if word[0] in "\u2010\u2011\u2012\u2013\u2014\u2212":
        return f"{word!r} begins with a typographic dash; use two hyphens: --{word.lstrip(word[0] + '-')}"
    option = "--config" if word.endswith((".yaml", ".yml")) else "--ckpt" if os.path.exists(word) else "--OPTION"
    return f"{word!r} belongs to no option, since each takes one value; give the option too: {option} {word}"


def _has_prefix(known: list[str], name: str) -> bool:
    return any(f"{each}.".startswith(f"{name}.") for each in known)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


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
