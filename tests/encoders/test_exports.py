"""A new encoder needs one export line; a forgotten one is named."""

from __future__ import annotations

import ast
from pathlib import Path

import seqrec.encoders


def registered_classes(file: Path) -> list[str]:
    """Classes of a module with a `register(...)` decorator."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any("register(" in ast.unparse(d) for d in node.decorator_list)
    ]


def forgotten_lines(package: Path, dotted: str) -> list[str]:
    """What is missing in a package's `__init__.py` so that all classes registered in it are exported."""
    init = package / "__init__.py"
    tree = ast.parse(init.read_text(encoding="utf-8"))
    imported = {
        (node.module, alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    exported = next(
        (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ),
        [],
    )
    lines = []
    for file in sorted(package.glob("*.py")):
        module = f"{dotted}.{file.stem}"
        for name in registered_classes(file):
            if (module, name) not in imported:
                lines.append(f"{init} lacks the line: from {module} import {name}")
            if name not in exported:
                lines.append(f'{init} lacks "{name}" in __all__')
    return lines


def test_every_encoder_file_is_exported():
    package = Path(seqrec.encoders.__file__).parent
    assert not (lines := forgotten_lines(package, "seqrec.encoders")), "\n".join(lines)


def test_every_encoder_file_registers_an_encoder():
    package = Path(seqrec.encoders.__file__).parent
    files = [file for file in package.glob("*.py") if file.name not in ("__init__.py", "base.py")]
    silent = [file.name for file in files if not registered_classes(file)]
    assert not silent, f'add @ENCODERS.register("<name>") to the encoder in {silent}'


def test_a_forgotten_export_is_named(tmp_path: Path):
    (tmp_path / "base.py").write_text("class SequenceEncoder: ...\n")
    (tmp_path / "mine.py").write_text('@ENCODERS.register("Mine")\nclass Mine(SequenceEncoder): ...\n')
    (tmp_path / "__init__.py").write_text("from pkg.base import SequenceEncoder\n__all__ = []\n")
    assert forgotten_lines(tmp_path, "pkg") == [
        f"{tmp_path / '__init__.py'} lacks the line: from pkg.mine import Mine",
        f'{tmp_path / "__init__.py"} lacks "Mine" in __all__',
    ]
    (tmp_path / "__init__.py").write_text('from pkg.mine import Mine\n__all__ = ["Mine"]\n')
    assert forgotten_lines(tmp_path, "pkg") == []
