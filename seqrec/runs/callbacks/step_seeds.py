"""Seeds that make the randomness of a training step depend only on the step."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch


class StepSeeds(pl.Callback):
    """Seeds torch before each training step from (run's seed, epoch, batch, process).

    Dropout and negatives of a step then do not depend on earlier draws. A run that is resumed at a step draws the same
    numbers as one that was never stopped, with one process or many. The run's seed is torch's initial seed, which
    `seed_everything` sets, and is kept in checkpoints.

    With the same seed, two runs on the CPU end with identical weights, whatever `num_workers`. Loader processes draw
    nothing: windows and their order come from the sampler's own generator, and negative samplers draw from torch's
    generator of their device, which is seeded here. On a GPU the draws are the same, but sums are not to the
    last bit, because threads add in changing order: gradients of embedding tables and of gathered rows (`index_add_`,
    `scatter_add_`, `index_put_` with repeated rows), `cumsum`, and the backward passes of mamba-ssm and causal-conv1d
    and of flash and memory-efficient attention. This package's Triton kernels add in a fixed order.
    `trainer.deterministic: true` (or `warn`) makes torch's own operations repeatable, slower, or names those that
    cannot be; it does not cover kernels of other packages. Another number of processes, batch size or GPU rounds
    differently. `seed` is the run's seed, None until training starts.
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
        # A seed of 64 bits, mixed because streams of neighbouring steps must have nothing in common.
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
        _seed_generators(seed, trainer.strategy.root_device)

    def state_dict(self) -> dict[str, Any]:
        """Return the run's seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the resumed run's seed."""
        self.seed = state_dict["seed"]


def _seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators as `torch.manual_seed` does, in a fraction of its time.

    `torch.manual_seed` also records the call stack for each kind of unused accelerator, to seed it later.
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for generator in torch.cuda.default_generators:
            generator.manual_seed(seed)
    torch.default_generator.manual_seed(seed)
