"""The shape of the house: who may import whom, how long files and functions are, what lies at the top."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# Lowest first. Imports go to lower rows or stay inside a room. Every room may raise our errors, so these lie below
# all, as the package's version does; the benchmark measures what its neighbours do, and the commands
# tie everything together.
ROWS = (
    {"errors", "__version__"},
    {"types", "registry", "specs"},
    {"data", "ops", "metrics", "streaming"},
    {"distributed", "runs"},
    {"sharding"},
    {"layers", "embeddings", "scoring", "negatives", "optim"},
    {"encoders", "losses", "ranks", "callbacks", "search"},
    {"protocols", "testing"},
    {"models"},
    {"inference", "results", "report", "doctor", "tuning", "sweep", "cli_config"},
    {"serving", "cli_errors"},
    {"benchmark"},
    {"cli_commands", "cli_trainer"},
    {"cli"},
    {"__main__"},
)
LEVELS = {room: level for level, rooms in enumerate(ROWS) for room in rooms}
TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "seqrec", "configs", "tests", "notebooks"}
DOT_FILES = {".ci", ".gitignore", ".pre-commit-config.yaml", ".github"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 50


def parsed(root: Path) -> Iterator[tuple[Path, ast.Module]]:
    """Python files below `root`, by their path from it, with their syntax trees."""
    for file in sorted(root.rglob("*.py")):
        yield file.relative_to(root), ast.parse(file.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that is imported, wherever; `from a import b` is `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def run_on_import(tree: ast.Module) -> list[ast.stmt]:
    """Statements that run when a module is imported: no bodies of functions, nothing for type checkers alone."""
    found: list[ast.stmt] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.stmt):
            found.append(node)
        waiting.extend(ast.iter_child_nodes(node))
    return found


def import_violations(package: Path) -> list[str]:
    """Imports that go up, sideways or from a room that the table does not have, and relative ones."""
    found = []
    for path, tree in parsed(package):
        if path == Path("__init__.py"):
            continue
        room = path.parts[0].removesuffix(".py")
        if room not in LEVELS:
            found.append(f"{path}: {room} is in no room; add it to a row of tests/test_architecture.py")
            continue
        for line, name in imported(tree):
            if name.startswith("."):
                found.append(f"{path}:{line} imports {name}, which is relative")
            parts = name.split(".")
            if parts[0] != "seqrec" or len(parts) < 2 or parts[1] == room:
                continue
            if LEVELS.get(parts[1], len(ROWS)) >= LEVELS[room]:
                found.append(f"{path}:{line} imports {name}: {room} lies no higher than {parts[1]}")
    return found


def heavy_import_violations(package: Path) -> list[str]:
    """Polars or matplotlib imported with a module, and Lightning in `data` outside the data module."""
    found = []
    for path, tree in parsed(package):
        on_import = [pair for node in run_on_import(tree) for pair in imported_here(node)]
        found += [
            f"{path}:{line} imports {name} on import; do it in the function that needs it"
            for line, name in on_import
            if root(name) in ("polars", "matplotlib")
        ]
        if path.parts[0] == "data" and path != Path("data/datamodule.py"):
            found += [
                f"{path}:{line} imports {name}, which only data/datamodule.py may"
                for line, name in imported(tree)
                if root(name) in ("lightning", "pytorch_lightning", "lightning_utilities")
            ]
    return found


def imported_here(node: ast.stmt) -> Iterator[tuple[int, str]]:
    """`imported` of one import statement; nothing of any other statement."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from imported(node)


def root(name: str) -> str:
    """First part of a dotted name."""
    return name.split(".")[0]


def size_violations(package: Path) -> list[str]:
    """Files that are too long, and functions whose signature and code are; a docstring may take what it needs."""
    found = []
    for path, tree in parsed(package):
        lines = len((package / path).read_text(encoding="utf-8").splitlines())
        if lines >= MAX_FILE_LINES:
            found.append(f"{path} has {lines} lines, allowed are fewer than {MAX_FILE_LINES}")
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node) is not None:
                    assert node.body[0].end_lineno is not None
                    length -= node.body[0].end_lineno - node.body[0].lineno + 1
                if length >= MAX_FUNCTION_LINES:
                    found.append(
                        f"{path}:{node.lineno} {node.name} has {length} lines, "
                        f"allowed are fewer than {MAX_FUNCTION_LINES}"
                    )
    return found


def top_level_violations(tracked: list[str]) -> list[str]:
    """Tracked paths whose first part is not one of the repository's entries."""
    return sorted({path.split("/")[0] for path in tracked} - TOP_LEVEL - DOT_FILES)


def lines(violations: list[str]) -> str:
    return "\n" + "\n".join(violations)


def test_imports_go_down_or_stay_inside_a_room():
    assert not (found := import_violations(REPOSITORY / "seqrec")), lines(found)


def test_heavy_imports_wait_until_they_are_needed():
    assert not (found := heavy_import_violations(REPOSITORY / "seqrec")), lines(found)


def test_files_and_functions_are_short():
    assert not (found := size_violations(REPOSITORY / "seqrec")), lines(found)


def test_top_level_holds_only_what_it_may():
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not (found := top_level_violations(listing.stdout.splitlines())), lines(found)


def write(package: Path, path: str, text: str) -> None:
    (package / path).parent.mkdir(parents=True, exist_ok=True)
    (package / path).write_text(text)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        (
            "layers/a.py",
            "from seqrec.encoders import SASRec",
            "layers/a.py:1 imports seqrec.encoders.SASRec: ",
        ),
        ("layers/a.py", "import seqrec.models.base", "layers/a.py:1 imports seqrec.models.base: "),
        ("layers/a.py", "from seqrec import models", "layers/a.py:1 imports seqrec.models: "),
        ("data/a.py", "def f():\n    from seqrec.ops import g", "data/a.py:2 imports seqrec.ops.g: "),
        (
            "ops/a.py",
            "if TYPE_CHECKING:\n    import seqrec.encoders.layers",
            "ops/a.py:2 imports seqrec.encoders.layers: ",
        ),
        ("types.py", "from seqrec.cli import main", "types.py:1 imports seqrec.cli.main.main: "),
        ("models/a.py", "from seqrec.nowhere import f", "models/a.py:1 imports seqrec.nowhere.f: "),
        ("models/a.py", "from .base import f", "models/a.py:1 imports .base.f, which is relative"),
        ("models/a.py", "from . import base", "models/a.py:1 imports ..base, which is relative"),
        ("helpers.py", "", "helpers.py: helpers is in no room"),
    ],
)
def test_an_import_that_goes_up_or_sideways_is_found(tmp_path: Path, path: str, text: str, message: str):
    write(tmp_path, "models/fine.py", "import torch\nimport seqrec\nfrom seqrec.types import History\n")
    write(
        tmp_path, "models/too.py", "from seqrec.models.fine import f\nfrom seqrec.errors import InputError\n"
    )
    assert import_violations(tmp_path) == []
    write(tmp_path, path, text + "\n")
    (found,) = import_violations(tmp_path)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("data/a.py", "import polars as pl"),
        ("cli.py", "try:\n    from polars import DataFrame\nexcept ImportError:\n    pass"),
        ("report.py", "import matplotlib.pyplot as plt"),
        ("cli.py", "class A:\n    import polars.selectors"),
        ("cli.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import polars"),
        ("data/a.py", "def f():\n    import lightning.pytorch as pl"),
        ("data/sources/a.py", "if TYPE_CHECKING:\n    from lightning.pytorch import Trainer"),
    ],
)
def test_a_heavy_import_is_found(tmp_path: Path, path: str, text: str):
    write(
        tmp_path, "data/fine.py", "if TYPE_CHECKING:\n    import polars as pl\ndef f():\n    import polars\n"
    )
    write(tmp_path, "data/datamodule.py", "import lightning.pytorch as pl\n")
    assert heavy_import_violations(tmp_path) == []
    write(tmp_path, path, text + "\n")
    assert len(heavy_import_violations(tmp_path)) == 1


def test_a_long_file_and_a_long_function_are_found(tmp_path: Path):
    write(tmp_path, "a.py", "x = 1\n" * 299)
    write(tmp_path, "b.py", "def f():\n" + "    x = 1\n" * 48)
    assert size_violations(tmp_path) == []
    write(tmp_path, "a.py", "x = 1\n" * 300)
    write(tmp_path, "b.py", "class A:\n    async def f():\n" + "        x = 1\n" * 49)
    assert size_violations(tmp_path) == [
        "a.py has 300 lines, allowed are fewer than 300",
        "b.py:2 f has 50 lines, allowed are fewer than 50",
    ]


def test_a_stray_file_at_the_top_is_found():
    assert top_level_violations(["README.md", "seqrec/a.py", ".ci/run", "docs/a.md", "setup.py"]) == [
        "docs",
        "setup.py",
    ]
