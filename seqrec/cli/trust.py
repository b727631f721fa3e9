"""Which classes a config may name: those that the user wrote or trusts, if the config came with a checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jsonargparse
from jsonargparse import _common

from seqrec.registry import TRUST_VARIABLE, trusted_packages, trusting

# Packages whose classes any config may name. The parser then requires a class of the kind that an argument declares.
KNOWN_PACKAGES = ("seqrec", "lightning.pytorch", "lightning.fabric")
OPTION = "--trust"


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
        if packages:
            os.environ[TRUST_VARIABLE] = ",".join(sorted(trusted_packages()))
        try:
            yield rest
        finally:
            if before is None:
                os.environ.pop(TRUST_VARIABLE, None)
            else:
                os.environ[TRUST_VARIABLE] = before


@contextmanager
def only_trusted_classes(words: Sequence[str]) -> Iterator[None]:
    """Let a config name classes only of seqrec, Lightning, trusted packages, and those that are typed in `words`."""
    typed = {path for word in words for path in re.findall(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", _value(word))}
    with _policy(deny=["*"], allow=sorted({*KNOWN_PACKAGES, *trusted_packages(), *typed})):
        yield


@contextmanager
def classes_of_the_user() -> Iterator[None]:
    """Let a config name any class but those that run commands, which jsonargparse lists."""
    with _policy(deny=[], allow=[]):
        yield


@contextmanager
def _policy(deny: list[str], allow: list[str]) -> Iterator[None]:
    before = dict(_common.parsing_settings)
    jsonargparse.set_parsing_settings(import_path_denylist=deny, import_path_allowlist=allow)
    try:
        yield
    finally:
        _common.parsing_settings.clear()
        _common.parsing_settings.update(before)


def _value(word: str) -> str:
    return word.partition("=")[2] if word.startswith("--") else word
