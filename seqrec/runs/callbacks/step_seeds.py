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

    With the same seed, two runs on the CPU end with identical weights, whatever `num_workers`: a loader process draws
    nothing, since windows and their order come from the sampler's own generator, and samplers of negatives draw from
    torch's generator of their device, which is seeded here. On a GPU the draws are the same, but sums are not to the
    last bit, because threads add in changing order: gradients of embedding tables and of gathered rows (`index_add_`,
    `scatter_add_`, `index_put_` with repeated rows), `cumsum`, and the backward passes of mamba-ssm and causal-conv1d
    and of flash and memory-efficient attention. This package's Triton kernels add in a fixed order.
    `trainer.deterministic: true` (or `warn`) makes torch's own operations repeatable, slower, or names those that
    cannot be; it does not know kernels of other packages. Another number of ranks, another batch size or another GPU
    round otherwise.

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
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
        _seed_generators(seed, trainer.strategy.root_device)

    def state_dict(self) -> dict[str, Any]:
        """The run's seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the seed of the run that is resumed."""
        self.seed = state_dict["seed"]


def _seed_generators(seed: int, device: torch.device) -> None:
    """`torch.manual_seed` for a step on `device`, in a fraction of its time.

    That one also notes the whole stack, once for each kind of accelerator that is not in use, to seed it later.
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for generator in torch.cuda.default_generators:
            generator.manual_seed(seed)
    torch.default_generator.manual_seed(seed)
