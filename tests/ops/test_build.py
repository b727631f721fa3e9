"""Installation of the compiled kernels by pip, with a compiler and without."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forked_commands import ForkedCommand

from seqrec.ops.compiled_library import VARIANTS

pytestmark = pytest.mark.process

REPOSITORY = Path(__file__).parents[2]
# Prints a report of an installed package, as JSON in the last line.
EXAMINATION = """
import json, torch
from seqrec.errors import InputError
from seqrec.ops import causal_conv1d, compiled_library, selective_scan
from seqrec.ops.causal_conv1d import CONV_BACKENDS
from seqrec.ops.selective_scan import SCAN_BACKENDS

def attempt(function):
    try:
        return str(tuple(function().shape))
    except InputError as error:
        return str(error)

def opened(name, lanes):
    try:
        path, = compiled_library.FOLDER.glob(name + ".*")
        return bool(compiled_library._open(path, lanes))
    except (AttributeError, OSError, ValueError):
        return False

u, A, B = torch.ones(1, 3, 2), -torch.ones(2, 4), torch.ones(1, 3, 4)
print(json.dumps({
    "folder": str(compiled_library.FOLDER),
    "error": compiled_library.load_error(),
    "opened": [name for name, lanes, _ in compiled_library.VARIANTS if opened(name, lanes)],
    "auto": [backends.choose("auto", "cpu", torch.float32).name for backends in (SCAN_BACKENDS, CONV_BACKENDS)],
    "by_auto": attempt(lambda: selective_scan(u, u, A, B, B)),
    "by_cpp": attempt(lambda: selective_scan(u, u, A, B, B, backend="cpp")),
    "conv_by_cpp": attempt(lambda: causal_conv1d(u, torch.ones(2, 4), backend="cpp")),
}))
"""


def install(folder: Path, **environment: str) -> tuple[str, dict[str, object], str]:
    """Install a copy of the tree; return the output of pip, the report of the installed package, and its log."""
    copy, target = folder / "copy", folder / "installed"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    built = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(REPOSITORY / "seqrec", copy / "seqrec", ignore=built)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "SEQREC_", "PYTHON"))}
    arguments = ["--no-index", "--no-build-isolation", "--no-deps", "--target", str(target), str(copy)]
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-v", "--disable-pip-version-check", *arguments],
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert pip.returncode == 0, pip.stdout
    process = subprocess.run(
        [sys.executable, "-c", EXAMINATION],
        env=kept | {"PYTHONPATH": str(target)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["folder"] == str(target / "seqrec" / "ops")
    return pip.stdout, report, process.stderr


def test_the_installation_under_test_has_every_variant_of_this_architecture(tmp_path: Path):
    variants = expected_variants()
    assert ForkedCommand(tmp_path, "-c", EXAMINATION, log=tmp_path / "log.txt").wait(300) == 0
    report = json.loads((tmp_path / "log.txt").read_text().splitlines()[-1])
    assert report["opened"] == variants
    assert report["error"] is None
    assert report["auto"] == ["cpp", "cpp"]
    assert report["by_cpp"] == report["conv_by_cpp"] == "(1, 3, 2)"


def test_without_a_compiler_it_installs_and_reports_what_is_missing(tmp_path: Path):
    pip, report, log = install(tmp_path, CC="/bin/false", CXX="/bin/false")
    for name, _, _ in VARIANTS:
        assert f'building extension "seqrec.ops.{name}" failed' in pip
    assert report["opened"] == []
    error = str(report["error"])
    assert error.startswith(f"no compiled library in {report['folder']}: ")
    assert "Install a C++17 compiler (gcc or clang), then seqrec again" in error
    assert report["auto"] == ["chunked", "shifted"]
    assert report["by_auto"] == "(1, 3, 2)"
    assert log.count(f"selective scan: backend 'cpp' is missing, the slower 'chunked' is used: {error}") == 1
    assert log.count(f"causal convolution: backend 'cpp' is missing, the slower 'shifted' is used: {error}") == 1
    assert report["by_cpp"] == f"backend='cpp' is unavailable: {error}; or use 'auto' or 'chunked'"
    assert report["conv_by_cpp"] == f"backend='cpp' is unavailable: {error}; or use 'auto' or 'shifted'"


def expected_variants() -> list[str]:
    """The variants that a compiler makes on this machine; without a compiler the test skips, in CI it fails."""
    compilers = (os.environ.get("CXX", "g++").split()[0], "g++", "clang++", "c++")
    if not any(map(shutil.which, compilers)):
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse("no C++ compiler is here; install gcc or clang")
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return [name for name, _, needs in VARIANTS if is_x86 or needs is None]


@pytest.mark.slow
def test_with_a_compiler_every_variant_of_this_architecture_is_built_and_loads(tmp_path: Path):
    variants = expected_variants()
    _, report, log = install(tmp_path)
    assert report["opened"] == variants
    assert report["error"] is None
    assert report["auto"] == ["cpp", "cpp"]
    assert report["by_cpp"] == report["conv_by_cpp"] == "(1, 3, 2)"
    assert "is missing" not in log
