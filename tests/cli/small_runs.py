"""A small run for tests of the command line, which call it in this process."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from seqrec.cli import main

# Loggers keep the stream of an earlier test, which pytest has closed.
logging.raiseExceptions = False
SMALL: dict[str, Any] = {
    "recipe": False,
    "data": {
        "source": {
            "class_path": "Synthetic",
            "init_args": {"num_users": 30, "num_items": 40, "mean_events": 12},
        },
        "max_length": 10,
        "batch_size": 8,
    },
    "model": {"class_path": "GRU4Rec", "init_args": {"d_model": 8}},
    "baselines": {"enabled": False},
    "trainer": {
        "max_epochs": 2,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}
FIT = ("fit", "--config", "small.yaml")


def write_config(folder: Path = Path(), **changes: Any) -> None:
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL | changes))


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line in which a command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(words)
    error = capsys.readouterr().err
    assert stop.value.code in (1, 2), error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


def checkpoint(run: str = "runs/version_0", name: str = "last") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(f"{run}/checkpoints/{name}.ckpt", weights_only=True)
    return found


def metrics(run: str, stage: str = "test") -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(Path(run, f"{stage}_metrics.json").read_text())["models"]
    return found
