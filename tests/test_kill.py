"""`kill -9` at random moments of a run of the command line."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_commands import ForkedCommand

pytestmark = pytest.mark.process

CONFIG = """
recipe: false
baselines: {{enabled: false}}
data:
  source: {{class_path: Synthetic, init_args: {{num_users: 160, num_items: 300, mean_events: 40}}}}
  store: store
  max_length: 50
  batch_size: 8
  num_workers: 1
model:
  class_path: MambaRec
  init_args: {{d_model: 16, num_layers: 1, dropout: 0.2}}
resume_points: {{every_n_steps: 1}}
trainer:
  max_epochs: 4
  enable_progress_bar: false
  accelerator: cpu
  devices: {ranks}
"""
# Four epochs of 20 batches.
STEPS = 80
TIMEOUT = 300


def start(folder: Path, *words: str) -> ForkedCommand:
    return ForkedCommand(folder, "fit", *words, log=folder / "log.txt")


def finish(process: ForkedCommand, folder: Path) -> None:
    assert process.wait(TIMEOUT) == 0, (folder / "log.txt").read_text()


def kill_after(process: ForkedCommand, last: Path, points: int, seconds: float) -> bool:
    """Kill the process, and its workers, some time behind its n-th resume point; False where it ends before."""
    seen, deadline = modified(last), time.monotonic() + TIMEOUT
    while points and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
        if (now := modified(last)) != seen:
            seen, points = now, points - 1
    time.sleep(seconds)
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def modified(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def outcome(folder: Path, version: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Final state and test metrics of a run."""
    checkpoints = folder / "runs" / "version_0" / "checkpoints"
    metrics = json.loads((folder / "runs" / f"version_{version}" / "test_metrics.json").read_text())
    return torch.load(checkpoints / "last.ckpt", weights_only=False), metrics


@pytest.mark.parametrize(
    ("kills", "ranks"),
    [(2, 1), pytest.param(10, 1, marks=pytest.mark.slow), pytest.param(3, 2, marks=pytest.mark.slow)],
)
def test_a_run_that_is_killed_ends_with_the_weights_of_one_that_is_not(tmp_path: Path, kills: int, ranks: int):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        (folder / "config.yaml").write_text(CONFIG.format(ranks=ranks))
    finish(start(whole, "--config", "config.yaml"), whole)
    chance = random.Random(0)
    last = killed / "runs" / "version_0" / "checkpoints" / "last.ckpt"
    words = ("--config", "config.yaml")
    done = 0
    while done < kills:
        # So that the kills lie all over the run, and not all behind its end.
        points, seconds = chance.randint(1, STEPS // (kills + 1) // ranks), chance.uniform(0, 0.05)
        if not kill_after(start(killed, *words), last, points, seconds):
            break
        done += 1
        words = ("--ckpt_path", str(last.relative_to(killed)))
    finish(start(killed, *words), killed)
    assert done >= kills / 2, "the run ended before it was killed often enough"
    (expected, expected_metrics), (found, metrics) = outcome(whole, 0), outcome(killed, done)
    assert metrics == expected_metrics
    assert found["global_step"] == expected["global_step"] == STEPS // ranks
    for part in ("state_dict", "optimizer_states"):
        assert flattened(found[part]) == flattened(expected[part])


def flattened(state: Any) -> list[Any]:
    """All values of nested states, tensors as lists, so that they compare."""
    if isinstance(state, dict):
        return [(key, flattened(value)) for key, value in state.items()]
    if isinstance(state, (list, tuple)):
        return [flattened(value) for value in state]
    return [state.tolist()] if isinstance(state, torch.Tensor) else [state]
