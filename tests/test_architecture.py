"""The shape of the house: who may import whom, how long files are, what lies at the top, how its prose reads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import prose
import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "seqrec"
CONTRIBUTING = REPOSITORY / ".github/CONTRIBUTING.md"
TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "seqrec", "configs", "tests", "notebooks"}
DOT_FILES = {".ci", ".gitignore", ".pre-commit-config.yaml", ".github"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 50
MAX_ROOMS, MAX_FILES, MAX_LINES = 19, 390, 66_200
# A file may be longer if it states why, in a comment of its own.
REASON = re.compile(r"^# Longer than 400 lines because .+", re.MULTILINE)


@cache
def levels() -> dict[str, int]:
    """Room -> level, from the table in CONTRIBUTING."""
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", CONTRIBUTING.read_text(encoding="utf-8"), re.MULTILINE)
    return {room: int(level) for level, rooms in rows for room in re.findall(r"`(\w+)/?`", rooms)}


def modules(package: Path) -> dict[str, ast.Module]:
    """Dotted name -> syntax tree of each Python file of a package."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that is imported, anywhere in a file; `from a import b` is `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def upward_imports(package: Path) -> list[str]:
    """Imports of a room on the same or a higher level, imports of rooms without a level, and relative ones."""
    found = []
    for name, tree in modules(package).items():
        parts = name.split(".")
        if len(parts) < 2:  # The front door offers names of every room.
            continue
        if parts[1] not in levels():
            found.append(f"{name} is in no room of the table in {CONTRIBUTING.name}")
            continue
        for line, target in imported(tree):
            room = target.split(".")[1] if target.startswith("seqrec.") else None
            if target.startswith("."):
                found.append(f"{name}:{line} imports {target}, which is relative")
            elif room in (None, parts[1]):
                continue
            elif levels().get(room, len(levels())) >= levels()[parts[1]]:
                found.append(f"{name}:{line} imports {target}, which is no lower than {parts[1]}")
    return found


def circles(package: Path) -> list[list[str]]:
    """Files that import each other, directly or through others, also if only type checkers see it."""
    trees = modules(package)
    door = package.name

    def target_of(dotted: str) -> str | None:
        if dotted in trees:
            return dotted
        parent = dotted.rpartition(".")[0]
        return parent if parent in trees else None

    edges = {
        name: {found for _, dotted in imported(tree) if (found := target_of(dotted)) not in (None, name, door)}
        for name, tree in trees.items()
        if name != door
    }
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in edges[name]:
            if other not in order:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == order[name]:
            together = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(together) > 1:
                found.append(sorted(together))

    for name in edges:
        if name not in order:
            visit(name)
    return found


def long_files_and_functions(package: Path) -> list[str]:
    """Files over the limit without a reason, and functions with a signature and code over theirs."""
    found = []
    for file in sorted(package.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        count = len(text.splitlines())
        path = file.relative_to(package)
        if count > MAX_FILE_LINES and not REASON.search(text):
            found.append(f"{path} has {count} lines; split it by idea, or state why: # Longer than 400 lines because")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            length = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                length -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            if length >= MAX_FUNCTION_LINES:
                found.append(
                    f"{path}:{node.lineno} {node.name} has {length} lines, allowed are {MAX_FUNCTION_LINES - 1}"
                )
    return found


def renames(package: Path) -> list[str]:
    """Calls that rename or replace a file outside of the one module that flushes before and after it."""
    found = []
    for file in sorted(package.rglob("*.py")):
        if file == package / "files.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            name, count = node.func.attr, len(node.args) + 2 * len(node.keywords)
            of_module = owner in ("os", "shutil") and name in ("rename", "renames", "replace", "move", "link")
            # `Path.replace` and `Path.rename` take one argument, unlike those of text and data frames.
            of_path = owner not in ("os", "shutil") and name in ("rename", "replace", "hardlink_to") and count == 1
            if of_module or (of_path and not isinstance(node.args[:1] and node.args[0], ast.Dict)):
                found.append(f"{file.relative_to(package)}:{node.lineno}")
    return found


def late_imports_of_polars(package: Path) -> list[tuple[str, int]]:
    """Module and line of each `import polars` inside a function."""
    found = []
    for name, tree in modules(package).items():
        functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        found += [
            (name, line)
            for function in functions
            for line, target in imported(function)
            if target.split(".")[0] == "polars"
        ]
    return sorted(set(found))


def lines(violations: list[str]) -> str:
    return "\n" + "\n".join(violations)


def test_imports_go_down_or_stay_inside_a_room():
    assert not (found := upward_imports(PACKAGE)), lines(found)


def test_no_files_import_each_other():
    assert not (found := circles(PACKAGE)), lines([" <-> ".join(each) for each in found])


def test_every_room_of_the_table_is_there():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(levels())


def test_files_and_functions_are_short():
    assert not (found := long_files_and_functions(PACKAGE)), lines(found)


def test_the_package_stays_small():
    files = list(PACKAGE.rglob("*.py"))
    counts = [len(file.read_text(encoding="utf-8").splitlines()) for file in files]
    assert len(set(levels()) - {"__main__"}) <= MAX_ROOMS
    assert len(files) <= MAX_FILES
    assert sum(counts) <= MAX_LINES


@pytest.mark.process
def test_only_the_training_path_imports_polars_late():
    code = (
        "import sys, seqrec.models, seqrec.inference, seqrec.data.datamodule, seqrec.serving\n"
        "print(*(name for name in sys.modules if name.startswith('seqrec.')))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    training_path = set(process.stdout.split())
    late = [f"{name}:{line}" for name, line in late_imports_of_polars(PACKAGE) if name not in training_path]
    assert not late, f"import polars at the top of these files: {late}"


def test_data_stays_free_of_lightning_outside_the_data_module():
    for name, tree in modules(PACKAGE).items():
        if name.startswith("seqrec.data") and name != "seqrec.data.datamodule":
            assert not [target for _, target in imported(tree) if target.split(".")[0] == "lightning"], name


def test_top_level_holds_only_what_it_may():
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert {path.split("/")[0] for path in listing.stdout.splitlines()} <= TOP_LEVEL | DOT_FILES


def test_the_prose_is_plain():
    rates = prose.rates(REPOSITORY)
    too_high = {word: rate for word, rate in rates.items() if word in prose.LIMITS and rate > prose.LIMITS[word]}
    assert not too_high, f"uses per 10,000 words: {too_high}; python tests/prose.py --list WORD shows the places"
    assert rates["if"] >= prose.LEAST_IF


def write(package: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text(text)
    return package


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        (
            "encoders/a.py",
            "from seqrec.models import SASRec",
            "imports seqrec.models.SASRec, which is no lower",
        ),
        ("encoders/a.py", "import seqrec.models.recommender", "imports seqrec.models.recommender, which is no lower"),
        ("encoders/a.py", "from seqrec import models", "imports seqrec.models, which is no lower"),
        ("ops/a.py", "if TYPE_CHECKING:\n    import seqrec.cli", "a:2 imports seqrec.cli, which is no lower"),
        (
            "ops/a.py",
            "def f():\n    from seqrec.nowhere import g",
            "imports seqrec.nowhere.g, which is no lower",
        ),
        ("models/a.py", "from .base import f", "imports .base.f, which is relative"),
        ("helpers.py", "", "seqrec.helpers is in no room"),
    ],
)
def test_an_import_that_goes_up_or_sideways_is_found(tmp_path: Path, path: str, text: str, message: str):
    fine = "import torch\nfrom seqrec.types import History\nfrom seqrec.errors import InputError\n"
    package = write(tmp_path / "seqrec", {"models/fine.py": fine})
    assert upward_imports(package) == []
    write(package, {path: text + "\n"})
    (found,) = upward_imports(package)
    assert message in found


def test_a_circle_is_found(tmp_path: Path):
    files = {
        "a.py": "if TYPE_CHECKING:\n    from seqrec.b import g\n",
        "b.py": "def f():\n    import seqrec.c\n",
        "c.py": "from seqrec.a import h\n",
        "d.py": "from seqrec import a\n",
    }
    assert circles(write(tmp_path / "seqrec", files)) == [["seqrec.a", "seqrec.b", "seqrec.c"]]


def test_a_long_file_and_a_long_function_are_found(tmp_path: Path):
    package = write(tmp_path / "seqrec", {"a.py": "x = 1\n" * 400, "b.py": "def f():\n" + "    x = 1\n" * 48})
    assert long_files_and_functions(package) == []
    write(package, {"a.py": "x = 1\n" * 401, "b.py": "async def f():\n" + "    x = 1\n" * 49})
    assert [found.split(" has ")[0] for found in long_files_and_functions(package)] == ["a.py", "b.py:1 f"]
    write(package, {"a.py": "# Longer than 400 lines because it is one table.\n" + "x = 1\n" * 400})
    assert [found.split(" has ")[0] for found in long_files_and_functions(package)] == ["b.py:1 f"]


def test_only_one_module_renames_files():
    """`seqrec.files` flushes a file before it is renamed, and its folder after that."""
    # A second name of a checkpoint, which is on disk already.
    allowed = [place for place in renames(PACKAGE) if place.startswith("runs/checkpoints.py")]
    assert len(allowed) == 1
    assert renames(PACKAGE) == allowed


def test_a_rename_elsewhere_is_found(tmp_path: Path):
    (tmp_path / "module.py").write_text("import os\nos.replace(a, b)\npath.replace(b)\ntext.replace('a', 'b')\n")
    assert renames(tmp_path) == ["module.py:2", "module.py:3"]


def test_no_module_hides_what_its_package_offers():
    """A module that is imported late would take the place of a function with its name."""
    hidden = []
    for file in sorted(PACKAGE.rglob("__init__.py")):
        package = ".".join(file.parent.relative_to(PACKAGE.parent).parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                name = alias.asname or alias.name
                there = (file.parent / f"{name}.py").exists() or (file.parent / name / "__init__.py").exists()
                if there and node.module not in (f"{package}.{name}", package):
                    hidden.append(f"{package}.{name}, of {node.module}")
    assert not hidden
