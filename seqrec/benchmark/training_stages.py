"""What `benchmark training` times, in a process of its own: plain values in, plain values out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# How a step is computed: the trainer's precision, and the switches of `seqrec.runs.callbacks.EncoderCompile`.
VARIANTS: dict[str, tuple[str, dict[str, bool]]] = {
    "fp32": ("32-true", {}),
    "bf16": ("bf16-mixed", {}),
    "fp16": ("16-mixed", {}),
    "compiled": ("32-true", {"compile": True}),
    "recomputed": ("32-true", {"activation_checkpointing": True}),
    "bf16, compiled, recomputed": ("bf16-mixed", {"compile": True, "activation_checkpointing": True}),
}


def train_steps(
    *,
    encoder: str,
    variant: str,
    length: int,
    batch_size: int,
    d_model: int,
    num_layers: int,
    num_items: int,
    steps: int,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """Train as `seqrec fit` does, without dropout, on one batch whose rows are full.

    The first two steps, in which memory is first taken and kernels are compiled, are not timed.

    Args:
        encoder: Name of a preset.
        variant: One of `VARIANTS`.
        length: Events L of each history.
        batch_size: Histories B.
        d_model: Width D.
        num_layers: Blocks.
        num_items: Items of the catalogue, uniform over the batch.
        steps: Timed steps.
        seed: Seed of weights, items and draws.
        device: cpu or cuda.

    Returns:
        `first_seconds`, the first step with what it compiles; `step_seconds`, of each timed step; `losses`, of all
        steps; `device_bytes`, the most memory of tensors on a CUDA device, None on CPU.
    """
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader

    from seqrec import models
    from seqrec.benchmark.catalogue_stages import full_batch
    from seqrec.runs.callbacks import EncoderCompile

    torch.manual_seed(seed)
    model = getattr(models, encoder)(
        num_items, d_model=d_model, num_layers=num_layers, dropout=0.0, max_length=length
    )
    batch = full_batch(num_items, batch_size, length)
    precision, switches = VARIANTS[variant]
    clock = _clock(torch.device(device))
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]  # text that Lightning lists
        callbacks=[EncoderCompile(**switches), clock],
        max_steps=steps + 2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader([batch] * (steps + 2), batch_size=None))  # type: ignore[arg-type]  # a list will do
    return {
        "first_seconds": clock.seconds[0],
        "step_seconds": clock.seconds[2:],
        "losses": clock.losses,
        "device_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def _clock(device: torch.device) -> Any:
    """A callback that notes seconds and losses of steps, and waits for the device on both sides."""
    import lightning.pytorch as pl
    import torch

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.losses: list[float] = []
            self._began = 0.0

        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            self._wait()
            self._began = time.perf_counter()

        def on_train_batch_end(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self._wait()
            self.seconds.append(time.perf_counter() - self._began)
            self.losses.append(float(outputs["loss"]))

        def _wait(self) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    return Clock()
