from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(name: str) -> str:
    return re.search(rf"<!-- {name} -->\n```bash\n(.*?)```", README, re.DOTALL)[1].strip()


def test_ci_finds_its_commands_in_the_readme():
    assert block("quick start").startswith('pip install -c .ci/constraints.txt -e ".[dev]" && seqrec fit')
    for tool in ("ruff check", "ruff format --check", "mypy", "pytest"):
        assert tool in block("test")
    script = (ROOT / ".ci/run").read_text()
    assert 'block "quick start" | bash' in script
    assert "block test | bash" in script


def test_constraints_pin_every_dependency():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    wanted += project["optional-dependencies"]["notebooks"]
    names = {re.match(r"[\w-]+", line)[0].lower() for line in wanted} - {"seqrec"}
    pinned = {line.split("==")[0].lower() for line in (ROOT / ".ci/constraints.txt").read_text().splitlines()}
    assert names <= pinned


def test_files_named_in_the_readme_exist():
    for name in re.findall(r"(?:configs|notebooks)/[\w/]+\.(?:yaml|ipynb)", README):
        assert (ROOT / name).is_file(), name
