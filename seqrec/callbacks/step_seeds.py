"""Randomness of a training step that depends on the step alone."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch


class StepSeeds(pl.Callback):
    """Seeds torch before each training step from (run's seed, epoch, batch, rank).

    Dropout and negatives of a step then do not depend on what was drawn before it, so that a run resumed at a step
    repeats what the run that was never stopped draws there, on one rank or many. The run's seed is torch's initial
    seed, which `seed_everything` sets, and is kept in checkpoints.

    Attributes:
        seed: The run's seed; None until training starts.
    """

    def __init__(self) -> None:
        self.seed: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Agree on the run's seed."""
        if self.seed is None:
            self.seed = int(trainer.strategy.broadcast(torch.initial_seed()))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the step."""
        assert self.seed is not None
        entropy = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        # torch takes seeds of 64 bits, mixed here so that neighbouring steps have nothing in common.
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))

    def state_dict(self) -> dict[str, Any]:
        """The run's seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the seed of the run that is resumed."""
        self.seed = state_dict["seed"]
