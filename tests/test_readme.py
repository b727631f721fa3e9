from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "notebooks/guide").glob("*.md"))]


def block(name: str) -> str:
    return re.search(rf"<!-- {name} -->\n```bash\n(.*?)```", README, re.DOTALL)[1].strip()


def test_ci_finds_its_commands_in_the_readme():
    assert block("quick start").startswith('pip install -c .ci/constraints.txt -e ".[dev]" && seqrec fit')
    for tool in ("ruff check", "ruff format --check", "mypy", "pytest"):
        assert tool in block("test")
    script = (ROOT / ".ci/run").read_text()
    assert 'block "quick start" | bash' in script
    assert "block test | xargs --max-procs=0 -d '\\n' -n 1 bash" in script


def test_constraints_pin_every_dependency():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    wanted += project["optional-dependencies"]["notebooks"]
    names = {re.match(r"[\w-]+", line)[0].lower() for line in wanted} - {"seqrec"}
    pinned = {line.split("==")[0].lower() for line in (ROOT / ".ci/constraints.txt").read_text().splitlines()}
    assert names <= pinned


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_files_named_in_a_page_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?:configs|notebooks)/[\w/.]+\.(?:yaml|ipynb|md|png|svg)", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_lines_of_a_page_are_short(page: Path):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [number for number, line in enumerate(lines, 1) if len(line) > 120]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_configs_named_in_a_command_exist(page: Path):
    commands = "\n".join(re.findall(r"(?ms)^```bash\n(.*?)^```", page.read_text(encoding="utf-8")))
    for name in re.findall(r"--config ([a-z][a-z0-9_]*)(?![\w./])", commands):
        assert (ROOT / "configs" / f"{name}.yaml").is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_of_a_page_lead_somewhere(page: Path):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        if heading:
            headings = re.findall(r"(?m)^#+ (.+)$", linked.read_text(encoding="utf-8"))
            assert heading in {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings}, target


def test_every_page_is_linked_from_the_readme():
    for page in PAGES[1:]:
        assert f"](notebooks/guide/{page.name})" in README, page.name


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_python_of_the_readme_recommends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    items = ("tent", "stove", "lamp", "mat", "pot", "kettle", "pan", "knife", "board", "scale")
    events = [(f"ann-{user}", items[(user + time) % 10], time) for user in range(10) for time in range(6)]
    lines = ["shopper,article,time", *(f"{user},{item},{time}" for user, item, time in events)]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    *statements, shown = code.strip().splitlines()
    names: dict[str, object] = {}
    exec("\n".join([*statements, f"result = {shown}"]), names)
    ((*recommended,),) = names["result"]
    assert len(set(recommended)) == 5
    assert set(recommended) < set(items) - {"tent", "stove"}
