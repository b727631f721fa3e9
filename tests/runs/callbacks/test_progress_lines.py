from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from seqrec.runs.callbacks import ProgressLines
from seqrec.runs.callbacks.progress_lines import planned_steps

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Clock:
    """A clock that moves on by 1 s whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


def trainer_with(lines: list[str], **arguments: Any) -> pl.Trainer:
    limits = {f"limit_{name}_batches": 2 for name in ("train", "val", "test", "predict")}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(callbacks=[ProgressLines(lines.append)], max_epochs=3, **limits | quiet | arguments)


def test_training_shows_steps_rate_time_left_and_losses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("seqrec.data.progress.time", Clock())
    monkeypatch.setattr("seqrec.data.progress.Progress.interval", 0.0)
    lines: list[str] = []
    trainer_with(lines, num_sanity_val_steps=0).fit(model := BoringModel())
    assert lines[0] == "training ..."
    assert re.fullmatch(
        r"training: \d steps, (\d s each|\S+ steps/s), \d+%, about \S+ s left, epoch \d(, \w+ \S+)*", lines[1]
    )
    assert re.fullmatch(r"training: 6 steps, \S+ s, .*", lines[-1])
    # Validation is a part of training, and has no line at its end.
    assert not [line for line in lines if re.match(r"validation: 2 batches, \S+ s,", line)]
    for stage, name in (("validate", "validation"), ("test", "test"), ("predict", "prediction")):
        lines.clear()
        judge = trainer_with(lines)
        getattr(judge, stage)(model, model.val_dataloader(), **({} if stage == "predict" else {"verbose": False}))
        assert lines[0] == f"{name} ..."
        assert re.fullmatch(rf"{name}: 2 batches, \S+ s, \d s each", lines[-1])


def test_nothing_is_shown_while_it_is_disabled():
    lines: list[str] = []
    trainer = trainer_with(lines)
    trainer.progress_bar_callback.disable()
    trainer.test(BoringModel(), verbose=False)
    assert lines == []


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_steps": 50}, 50),
        ({"max_epochs": 4}, 12),
        ({"max_steps": 50, "max_epochs": 4}, 12),
        ({"max_epochs": 4, "num_training_batches": float("inf")}, float("inf")),
        ({}, None),
    ],
)
def test_the_budget_is_the_smaller_of_steps_and_epochs(limits: dict[str, Any], steps: float | None):
    trainer = {"max_steps": -1, "max_epochs": None, "num_training_batches": 5, "accumulate_grad_batches": 2}
    assert planned_steps(SimpleNamespace(**trainer | limits)) == steps  # type: ignore[arg-type]
