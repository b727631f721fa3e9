"""The argument parser of every command: dashes or underscores, lists without brackets, refusals in one line."""

from __future__ import annotations

import collections.abc
import inspect
import json
import re
import sys
from argparse import SUPPRESS
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, NoReturn, get_args, get_origin, get_type_hints

import jsonargparse

from seqrec.aliases import __version__
from seqrec.cli.errors import refusal_in_one_line
from seqrec.errors import InputError, MissingInputError
from seqrec.specs import classes_in, from_spec

FLAGS = ("-h", "--debug", "--help", "--help_all", "--json", "--print_config", "--version")
# Options that are true if no value follows.
SWITCHES = ("--demo",)
# Options of every command -> help. They are taken from the words before these are parsed.
COMMON = {
    "trust": "packages whose classes a checkpoint may name, separated by commas",
    "json": "print one JSON document instead of text; progress and notes go to standard error",
    "table": "file that gets the printed tables: .json, .md or .png; may be repeated",
}


class ArgumentParser(jsonargparse.ArgumentParser):
    """Parser that refuses in one line, with what is allowed."""

    # The command, for examples in refusals.
    command = ""
    # Arguments of the command, and whether it is one of a run: the parsers of classes need them too.
    given: ClassVar[Sequence[str]] = ()
    of_run: ClassVar[bool] = False

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the reason and exit with status 2."""
        # The parser of a command puts itself on the exception that the parser of all commands gets.
        refusing = getattr(ex, "subcommand_parser", self)
        sys.stderr.write(f"error: {refusal_in_one_line(message, refusing, ex)}\n")
        raise SystemExit(2)


def with_underscores(words: Sequence[str]) -> list[str]:
    """Return words with underscores instead of dashes in the names of options, and with the values of bare switches.

    Example:
        >>> with_underscores(["--top-k=5", "--demo", "--protocol", "sasrec-100"])
        ['--top_k=5', '--demo', 'true', '--protocol', 'sasrec-100']
    """
    found = []
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        option, equals, value = word.partition("=")
        named = word.startswith("--") and word != "--"
        found.append(f"--{option[2:].replace('-', '_')}{equals}{value}" if named else word)
        if word in SWITCHES and following.startswith("--"):
            found.append("true")
    return found


def pairs_of(words: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each option, its value and both as they were given; a value without an option has an empty option.

    A value may look like an option: the name of a folder, for example, which others may have chosen.
    """
    waiting = list(words)
    while waiting:
        given = [waiting.pop(0)]
        option, equals, value = given[0].partition("=")
        if not option.startswith("-"):
            option, value = "", given[0]
        elif not equals and option not in FLAGS and waiting:
            value = waiting.pop(0)
            given.append(value)
        yield option, value, given


def add_common_options(parser: ArgumentParser, names: Collection[str] = COMMON) -> None:
    """Add options of every command to the help of one."""
    for name in names:
        action: dict[str, Any] = {"action": "store_true"} if name == "json" else {}
        parser.add_argument(f"--{name}", help=COMMON[name], default=SUPPRESS, **action)


def without_output_options(words: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """Return words without `--json` and `--table`, whether the result is printed as JSON, and the files of tables.

    Raises:
        InputError: if the value of `--json` is neither true nor false.

    Example:
        >>> without_output_options(["--json", "runs/a", "--table", "a.md", "--table=a.png"])
        (['runs/a'], True, ['a.md', 'a.png'])
    """
    rest: list[str] = []
    files: list[str] = []
    as_json, follows = "false", False
    for option, value, given in pairs_of(words):
        if follows and not option and value in ("true", "false"):
            as_json = value
        elif option == "--json":
            as_json = value or "true"
        elif option == "--table":
            files.append(value)
        else:
            rest += given
        follows = given == ["--json"]
    if as_json not in ("true", "false"):
        raise InputError(f"--json={as_json} must be true or false")
    return rest, as_json == "true", files


def with_names(words: Sequence[str], positional: str | None = None, lists: Collection[str] = ()) -> list[str]:
    """Return words with each value after its option, and each list as one JSON word.

    Args:
        words: Arguments of a command.
        positional: The option that values without an option belong to.
        lists: Options that take lists, which may be given as several words and several times.

    Example:
        >>> with_names(["a", "b", "--slices", "true", "--runs=c"], "runs", ["--runs"])
        ['--runs', '["a", "b", "c"]', '--slices', 'true']
    """
    found: list[str] = []
    places: dict[str, int] = {}  # of the words of lists
    waiting = deque(words)
    free = [] if positional is None else [f"--{positional}"]
    while waiting:
        word = waiting.popleft()
        if free and not word.startswith("-"):
            waiting.appendleft(word)
            word = free.pop()
        option, equals, value = word.partition("=")
        if option in lists:
            values = [value] if equals else []
            while waiting and not waiting[0].startswith("--"):
                values.append(waiting.popleft())
            whole = len(values) == 1 and values[0].startswith("[")
            if option in found and (whole or option not in places):
                raise InputError(f"{option} is given twice, once as a list: give all of its values in one list")
            if whole:
                found += [option, values[0]]
            elif option in places:
                found[places[option]] = json.dumps(json.loads(found[places[option]]) + values)
            else:
                found += [option, json.dumps(values)]
                places[option] = len(found) - 1
            continue
        found.append(word)
        if word.startswith("-") and "=" not in word and word not in FLAGS and waiting:
            value = waiting.popleft()
            if re.match(r"-[^-]", value) and value not in ("-c", "-h"):
                found[-1] += f"={value}"  # -2GiB, which the parser would take for an option
            else:
                found.append(value)
    return found


def call(
    name: str,
    function: Callable[..., object],
    words: Sequence[str],
    *,
    positional: str | None = None,
    note: str | None = None,
    as_typed: str = "--ckpt",
    shows: bool = True,
) -> None:
    """Call a function with arguments from the command line.

    The function's signature and docstring describe the options, which are `words`, with underscores. A parameter that
    is a dataclass is given by its fields. `as_typed` is the user's name of the option of the checkpoint. See `Command`
    for the other arguments.
    """
    usage = f"seqrec {name} {positional.upper() + ' ' if positional else ''}[options]"
    about = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]
    parser = ArgumentParser(usage=usage, description=about, epilog=note, version=__version__, allow_abbrev=False)
    parser.command = name
    parser.add_argument("--config", action="config", help="YAML file with the options")
    add_common_options(parser, COMMON if shows else ("trust",))
    hints = get_type_hints(function)
    kinds = ((key, cls) for key, kind in hints.items() for cls in (kind, *get_args(kind)))
    groups = {key: cls for key, cls in kinds if isinstance(cls, type) and is_dataclass(cls)}
    parser.add_function_arguments(function, skip=set(groups), as_group=False)
    for cls in groups.values():
        parser.add_class_arguments(cls, None, as_group=False)
        hints |= get_type_hints(cls)
    lists = [f"--{key}" for key, kind in hints.items() if get_origin(kind) in (list, collections.abc.Sequence)]
    ArgumentParser.given, ArgumentParser.of_run = words, False
    values = parser.parse_args(with_names(words, positional, lists)).as_dict()
    del values["config"]
    if in_config := [key for key in COMMON if key in values]:
        raise InputError(f"{in_config[0]} is an option of the command line, not of a config: write --{in_config[0]}")
    objects = {key: cls(**{field.name: values.pop(field.name) for field in fields(cls)}) for key, cls in groups.items()}
    # The parser would hide why a class that is one of several could not be built.
    built = {key: from_spec(value, tuple(classes_in(hints[key])) or object) for key, value in values.items()}
    try:
        function(**built, **objects)
    except MissingInputError as error:
        text = str(error)
        raise MissingInputError(f"{as_typed} {text[5:]}" if text.startswith("ckpt=") else text) from error
