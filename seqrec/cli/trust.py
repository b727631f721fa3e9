"""Which classes a config may name: those that the user wrote or trusts, if the config came with a checkpoint."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jsonargparse
from jsonargparse import _common, _typehints, _util

from seqrec.cli.parsing import pairs_of
from seqrec.errors import InputError
from seqrec.registry import TRUST_VARIABLE, trusted_packages, trusting

# Packages whose classes any config may name. The parser then requires a class of the kind that an argument declares.
KNOWN_PACKAGES = ("seqrec", "lightning.pytorch", "lightning.fabric")
OPTION = "--trust"
# Options whose values are files or folders, the names of which others may have chosen.
_FILES = (
    *("--ckpt", "--ckpt_path", "--config", "-c", "--store", "--data.store", "--output"),
    *("--warm_start", "--warm_start.ckpt", "--warm_start.store"),
)
# A dotted path that is no part of the name of a file.
_PATH = re.compile(r"(?<![\w./-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+(?![\w./-])")


@contextmanager
def trust_of(words: Sequence[str]) -> Iterator[list[str]]:
    """Trust the packages of `--trust` during a command, also in processes that it starts.

    Args:
        words: Arguments with underscores. `--trust` takes names of packages, separated by commas, and may be repeated.

    Yields:
        The other words.

    Raises:
        InputError: if one is no name of a package.
    """
    rest: list[str] = []
    packages: list[str] = []
    for option, value, given in pairs_of(words):
        if option == OPTION and value:
            packages += [name.strip() for name in value.split(",")]
        else:
            rest += given
    before = os.environ.get(TRUST_VARIABLE)
    with trusting(packages):
        _find_classes_in_working_folder(rest)
        if packages:
            os.environ[TRUST_VARIABLE] = ",".join(sorted(trusted_packages()))
        try:
            yield rest
        finally:
            if before is None:
                os.environ.pop(TRUST_VARIABLE, None)
            else:
                os.environ[TRUST_VARIABLE] = before


def _find_classes_in_working_folder(words: Sequence[str]) -> None:
    """Make modules of the working folder importable if a command names classes of the user's.

    The folder may have come with a checkpoint. Otherwise a file there would stand in for each optional package that is
    not installed, such as `wandb.py`.
    """
    if (trusted_packages() or _typed(words) or name_a_config(words)) and os.getcwd() not in sys.path:
        # At the end, where it hides no installed package.
        sys.path.append(os.getcwd())


Check = Callable[[Mapping[str, Any]], None]


@contextmanager
def only_trusted_classes(words: Sequence[str], run: Path) -> Iterator[Check]:
    """Let the config of the folder `run` name classes only of seqrec, Lightning, trusted packages, and typed ones.

    Functions and other objects are refused, except those of trusted packages and those typed in `words`. An argument
    without a declared class gets no object.

    Yields:
        What checks the parsed config, before it is used.
    """
    typed = _typed(words)
    with _policy(["*"], sorted({*KNOWN_PACKAGES, *trusted_packages(), *typed}), only_classes=True) as refused:

        def check(config: Mapping[str, Any]) -> None:
            if refused:
                # Taken for text, it would go into the config of this run, which a later command gets by name.
                raise RefusedError(f"the config of a checkpoint's run names {refused[0]}", refused[0])
            _refuse_other_places(config, run, {value for _, value, _ in pairs_of(words)})

        yield check


@contextmanager
def classes_of_the_user() -> Iterator[Check]:
    """Let a config name any class but those that run commands, which jsonargparse lists."""
    with _policy([], [], only_classes=False):
        yield lambda config: None


def _refuse_other_places(config: Mapping[str, Any], run: Path, typed: Collection[str]) -> None:
    """Refuse a config that writes outside of the working folder and the folder of its runs, or to another machine."""
    runs = run.resolve().parent
    parts = (part for key, part in config.items() if key not in ("data", "model", "protocol", "ckpt_path", "config"))
    for text in (text for part in parts for text in _texts(part) if text not in typed and "\0" not in text):
        place = Path(text).expanduser().resolve()
        within = place == runs.parent or any(place.is_relative_to(root) for root in (Path.cwd(), runs))
        if "://" in text or not within:
            raise InputError(
                f"the config of a checkpoint's run names {text}, which is neither in the working folder nor in {runs}; "
                f"give the config yourself if results may be written there: --config {run / 'config.yaml'}"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, (Mapping, list, tuple)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)
    elif isinstance(value, (str, Path)):
        yield str(value)


@contextmanager
def _policy(deny: list[str], allow: list[str], *, only_classes: bool) -> Iterator[list[str]]:
    before = dict(_common.parsing_settings), _util.canonical_import_paths, _typehints.adapt_classes_any
    entry_of, refused = _common.denying_import_path_entry, list[str]()

    def remembered_entry_of(path: str) -> str | None:
        entry: str | None = entry_of(path)
        if entry is not None:
            refused.append(path)
        return entry

    jsonargparse.set_parsing_settings(import_path_denylist=deny, import_path_allowlist=allow)
    if only_classes:
        named = {*trusted_packages(), *allow} - {*KNOWN_PACKAGES}
        # The parser calls these for each object that a value names, before it uses the object, and for each value of an
        # argument that declares no class.
        _util.canonical_import_paths = partial(_paths_of_class, before[1], named)
        _typehints.adapt_classes_any = partial(_no_object, before[2], named)
        _common.denying_import_path_entry = remembered_entry_of
    try:
        yield refused
    finally:
        _common.denying_import_path_entry = entry_of
        _common.parsing_settings.clear()
        _common.parsing_settings.update(before[0])
        _util.canonical_import_paths, _typehints.adapt_classes_any = before[1:]


class RefusedError(InputError, _common.ImportDenied):
    """The config of a checkpoint's run names what it may not."""

    def __init__(self, reason: str, path: str) -> None:
        package = path.partition(".")[0]
        super().__init__(
            f"{reason}. If you trust {package}, add --trust {package}, or give the config yourself: --config FILE"
        )


def _paths_of_class(paths_of: Callable[[Any], set[str]], named: Collection[str], obj: Any) -> set[str]:
    paths = paths_of(obj)
    if not inspect.isclass(obj) and not any(_is_named(path, named) for path in paths):
        raise RefusedError(f"{min(paths)} is no class, but the config of a checkpoint's run names it", min(paths))
    return paths


def _no_object(adapt: Callable[..., Any], named: Collection[str], value: Any, *args: Any) -> Any:
    path = value.get("class_path") if isinstance(value, (dict, jsonargparse.Namespace)) else None
    if path is not None and not _is_named(str(path), named):
        raise RefusedError(f"the config of a checkpoint's run has {path} for an argument that declares no class", path)
    return adapt(value, *args)


def _is_named(path: str, named: Collection[str]) -> bool:
    return path in named or path.partition(".")[0] in named


def name_a_config(words: Sequence[str]) -> bool:
    """Return whether the words of a command name a config."""
    return any(option in ("--config", "-c") for option, _, _ in pairs_of(words))


def _typed(words: Sequence[str]) -> set[str]:
    """Return the dotted paths that the user typed, other than in names of files."""
    values = [value for option, value, _ in pairs_of(words) if option not in _FILES]
    return {path for value in values for path in _PATH.findall(value)}
