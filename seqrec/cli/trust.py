"""Which classes a config may name: those that the user wrote or trusts, if the config came with a checkpoint."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jsonargparse
from jsonargparse import _common, _util

from seqrec.registry import TRUST_VARIABLE, trusted_packages, trusting

# Packages whose classes any config may name. The parser then requires a class of the kind that an argument declares.
KNOWN_PACKAGES = ("seqrec", "lightning.pytorch", "lightning.fabric")
OPTION = "--trust"
# Options whose values are files or folders, the names of which others may have chosen.
_FILES = ("--ckpt", "--ckpt_path", "--config", "-c", "--store", "--data.store", "--output")
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
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        option, equals, value = word.partition("=")
        if option == OPTION and (equals or waiting):
            packages += [name.strip() for name in (value if equals else waiting.pop(0)).split(",")]
        else:
            rest.append(word)
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
    options = {word.partition("=")[0] for word in words}
    if (trusted_packages() or _typed(words) or options & {"--config", "-c"}) and os.getcwd() not in sys.path:
        # At the end, where it hides no installed package.
        sys.path.append(os.getcwd())


@contextmanager
def only_trusted_classes(words: Sequence[str]) -> Iterator[None]:
    """Let a config name classes only of seqrec, Lightning, trusted packages, and those that are typed in `words`.

    Functions and other objects are refused, except those of trusted packages and typed ones. An argument without a
    declared class gets no object.
    """
    typed = _typed(words)
    with _policy(deny=["*"], allow=sorted({*KNOWN_PACKAGES, *trusted_packages(), *typed}), only_classes=True):
        yield


@contextmanager
def classes_of_the_user() -> Iterator[None]:
    """Let a config name any class but those that run commands, which jsonargparse lists."""
    with _policy(deny=[], allow=[], only_classes=False):
        yield


@contextmanager
def _policy(deny: list[str], allow: list[str], *, only_classes: bool) -> Iterator[None]:
    before, paths_of = dict(_common.parsing_settings), _util.canonical_import_paths
    jsonargparse.set_parsing_settings(import_path_denylist=deny, import_path_allowlist=allow)
    if only_classes:
        jsonargparse.set_parsing_settings(instantiate_subclass_spec_in_any=False)
        named = {*trusted_packages(), *allow} - {*KNOWN_PACKAGES}

        def paths_of_class(obj: Any) -> set[Any]:
            paths: set[str] = paths_of(obj)
            if not inspect.isclass(obj) and not any({path, path.partition(".")[0]} & named for path in paths):
                raise _common.ImportDenied(f"Importing '{min(paths)}' is not allowed, because it is no class")
            return paths

        # The parser asks it about each object that a value names, before it uses the object.
        _util.canonical_import_paths = paths_of_class
    try:
        yield
    finally:
        _util.canonical_import_paths = paths_of
        _common.parsing_settings.clear()
        _common.parsing_settings.update(before)


def _typed(words: Sequence[str]) -> set[str]:
    """Return the dotted paths that the user typed, other than in names of files."""
    found: set[str] = set()
    before = ""
    for word in words:
        option, equals, value = word.partition("=")
        if not word.startswith("-"):
            option, value = before, word
        before = "" if equals else option
        if option not in _FILES:
            found.update(_PATH.findall(value))
    return found
