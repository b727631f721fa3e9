"""What importing costs: nothing for `seqrec`, and no table library for its models."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process


def loaded_by(statement: str, *names: str) -> list[str]:
    """Which of the modules `names` a fresh process has loaded after `statement`; it must print nothing else."""
    code = f"import sys\n{statement}\nprint([name for name in {names!r} if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stderr == ""
    loaded: list[str] = ast.literal_eval(process.stdout)
    return loaded


def test_importing_seqrec_loads_nothing_heavy():
    assert loaded_by("import seqrec", "torch", "numpy", "polars", "lightning", "torchmetrics") == []


def test_importing_models_and_data_loads_no_table_library_and_no_kernels():
    modules = "seqrec.models, seqrec.inference, seqrec.data.datamodule"
    kernels = [f"seqrec.ops.{op}.triton_kernels" for op in ("selective_scan", "causal_conv1d", "ssd")]
    kernels.append("seqrec.ops.dropout_kernels")
    assert loaded_by(f"import {modules}", "polars", "pandas", *kernels) == []


def test_errors_registry_and_specs_load_without_torch():
    assert loaded_by("import seqrec.errors, seqrec.registry, seqrec.specs", "torch") == []


def test_the_command_line_loads_no_server_before_it_serves():
    assert loaded_by("import seqrec.cli.commands", "fastapi", "uvicorn", "prometheus_client", "redis") == []
