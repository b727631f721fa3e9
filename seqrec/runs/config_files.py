"""Configs that are part of the package, by name.

In a clone they are the folder `configs`. An installed package contains a copy of that folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from seqrec.errors import MissingInputError
from seqrec.registry import did_you_mean

_HERE = Path(__file__).parent
# In a clone `configs` next to this file is a symbolic link. A system that has none checks it out as a file.
CONFIGS = next(folder for folder in (_HERE / "configs", _HERE.parents[1] / "configs", _HERE) if folder.is_dir())


def find_config(name: str) -> Path:
    """Return the file of a path, or else of the name of a shipped config: `quickstart`, `trainer/ddp`, ..

    The prefix `configs/` and the suffix `.yaml` may be given.

    Raises:
        MissingInputError: if neither a file nor a config of the package has that name.

    Example:
        >>> find_config("fragments/model/SASRec").name
        'SASRec.yaml'
    """
    bare, known = name.removeprefix("configs/").removesuffix(".yaml"), config_names()
    if Path(name).is_file():
        if name in known:
            sys.stderr.write(f"config {name}: the file {Path(name).absolute()} is used, not the package's config\n")
        return Path(name)
    if bare in known:
        return CONFIGS / f"{bare}.yaml"
    last_parts = {each.rpartition("/")[2].lower(): each for each in known}
    near = last_parts.get(bare.rpartition("/")[2].lower())
    hint = f"; did you mean {near}?" if near else did_you_mean(bare, known)
    raise MissingInputError(
        f"config {name!r} is neither a file nor a config of the package{hint or '; `seqrec configs` lists these'}"
    )


def config_names() -> list[str]:
    """Return the names of the shipped configs: whole configs first, then folder by folder."""
    files = (path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
    ordered = sorted(files, key=lambda path: (len(path.parts), path.as_posix().lower()))
    return [path.with_suffix("").as_posix() for path in ordered]


def config_summaries() -> Iterator[tuple[str, str]]:
    """Yield each shipped config's name and its first line, which is a comment or all that it sets."""
    for name in config_names():
        lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        yield name, lines[0].removeprefix("# ")
