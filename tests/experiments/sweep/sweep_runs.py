"""A sweep small enough for tests: trials of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SMALL = {
    "recipe": False,
    "data": {
        "source": {
            "class_path": "Synthetic",
            "init_args": {"num_users": 30, "num_items": 40, "mean_events": 12},
        },
        "store": "store",
        "max_length": 10,
        "batch_size": 8,
    },
    "model": {"class_path": "GRU4Rec", "init_args": {"d_model": 4, "optimizer": {"class_path": "Adam"}}},
    "trainer": {
        "max_epochs": 2,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}],
    },
}
SWEEP = {
    "folder": "sweep",
    "configs": ["small.yaml"],
    "parameters": {
        "model.optimizer.lr": {"type": "float", "low": "1e-4", "high": 0.1, "log": True},
        "model.d_model": {"type": "int", "low": 2, "high": 6, "step": 2},
        "data.train_windows": {"type": "categorical", "choices": ["NewestWindow", "StridedWindows"]},
    },
    "trials": 3,
}


def write(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write `small.yaml` and `sweep.yaml` with changes to the latter."""
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    sweep = {**SWEEP, **changes}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return sweep
