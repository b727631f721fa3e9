"""`seqrec benchmark training`: a training step in several precisions, compiled, recomputed, and in plain PyTorch."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from seqrec.benchmark import harness
from seqrec.benchmark.catalogue import full_batch
from seqrec.benchmark.harness import Benchmark, Row
from seqrec.benchmark.measurement import run_measured
from seqrec.data.prepare.memory import spoken_bytes
from seqrec.encoders import ENCODERS
from seqrec.errors import InputError
from seqrec.experiments import MODELS
from seqrec.ops import ALL_BACKENDS
from seqrec.ops.dropout import check_share
from seqrec.runs.callbacks import EncoderCompile

# The same model with every op of `seqrec.ops` computed by torch's own functions, as a user would write it.
PLAIN = "plain PyTorch"
# How to compute a step: the trainer's precision, and the switches of `EncoderCompile`.
VARIANTS: dict[str, tuple[str, dict[str, bool]]] = {
    PLAIN: ("32-true", {}),
    "fp32": ("32-true", {}),
    "bf16": ("bf16-mixed", {}),
    "fp16": ("16-mixed", {}),
    "compiled": ("32-true", {"compile": True}),
    "recomputed": ("32-true", {"activation_checkpointing": True}),
    "bf16, compiled, recomputed": ("bf16-mixed", {"compile": True, "activation_checkpointing": True}),
}


def benchmark_training(
    lengths: Sequence[int] = (5000,),
    *,
    encoders: Sequence[str] = ("MambaRec", "SASRec"),
    variants: Sequence[str] = ("fp32", "bf16", "compiled", "recomputed"),
    batch_size: int = 4,
    d_model: int = 64,
    num_layers: int = 2,
    num_items: int = 100_000,
    dropout: float = 0.0,
    steps: int = 5,
    seed: int = 0,
    device: str = "cpu",
    json_file: str | None = None,
) -> None:
    """Time training steps and their memory, computed in several ways, and compare their losses.

    Each combination runs in a process of its own, through Lightning's trainer. Variants: fp32, bf16, fp16, compiled,
    recomputed, "bf16, compiled, recomputed", and "plain PyTorch", which is fp32 with no kernels but torch's own.

    Args:
        lengths: Events per history.
        encoders: Names of presets.
        variants: Names of `VARIANTS`; fp16 is for cuda only. The others are compared with the first.
        batch_size: Histories per batch.
        d_model: Width.
        num_layers: Blocks.
        num_items: Items of the catalogue.
        dropout: Share that is set to 0. Variants draw it from different generators, so that losses differ.
        steps: Timed steps; the fastest counts.
        seed: Seed of weights, items and draws.
        device: cpu or cuda.
        json_file: File for the figures, as JSON.

    Raises:
        InputError: if an argument is out of range.
    """
    harness.check_names(ENCODERS, encoders=encoders)
    harness.check_names(VARIANTS, variants=variants)
    harness.check_numbers(1, lengths=lengths, steps=steps, empty=False)
    harness.check_device(device)
    if "fp16" in variants and device == "cpu":
        raise InputError("variants: fp16 needs device=cuda; on a CPU use bf16")
    check_share(dropout)
    shape = {"d_model": d_model, "num_layers": num_layers, "batch_size": batch_size, "num_items": num_items}
    settings = {**shape, "dropout": dropout, "steps": steps, "seed": seed, "device": device}
    benchmark = Benchmark(json_file, settings=settings, figures=[])

    def measure(cell: Row) -> Row:
        measured = run_measured(train_steps, {**cell, "settings": settings})
        found = measured.value
        held = found["device_bytes"]
        return {
            "seconds": min(found["step_seconds"]),
            "first_seconds": found["first_seconds"],
            "bytes": measured.peak_anonymous - measured.anonymous_before if held is None else held,
            "losses": found["losses"],
        }

    cells = [
        {"encoder": encoder, "length": length, "variant": variant}
        for encoder, length, variant in itertools.product(encoders, lengths, variants)
    ]
    benchmark.run("figures", cells, measure, "{encoder}, {length:,} events, {variant}")
    head = "encoder | events | computed | ms a step | ratio | memory | ratio | last loss | first step"
    rows = harness.with_first(benchmark["figures"], "encoder", "length")
    text = harness.table(head, (_cells(row, first) for row, first in rows))
    text += "\n" + harness.failures(benchmark["figures"], "{encoder}, {length:,}, {variant}")
    sizes = f"width {d_model}, {num_layers} blocks, batch {batch_size}, {num_items:,} items, dropout {dropout:g}"
    benchmark.finish(f"training step, {sizes}, fastest of {steps} on {device}", text.rstrip())


def _cells(row: Row, first: Row) -> list[str]:
    name = [row["encoder"], f"{row['length']:,}", row["variant"]]
    if harness.failed(row):
        return [*name, harness.DID_NOT_RUN]
    times = [f"{row['seconds'] * 1e3:,.0f}", f"{row['seconds'] / first['seconds']:.2f}"]
    memory = [spoken_bytes(row["bytes"]), f"{row['bytes'] / max(first['bytes'], 1):.2f}"]
    return [*name, *times, *memory, f"{row['losses'][-1]:.5f}", f"{row['first_seconds']:.1f} s"]


def train_steps(encoder: str, variant: str, length: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train as `seqrec fit` does, on one batch with full rows and items uniform over the catalogue.

    See `benchmark_training` for the arguments. The first two steps, in which memory is first taken and kernels are
    compiled, are not timed.

    Returns:
        `first_seconds`, the first step with compilation; `step_seconds`, of each timed step; `losses`, of all steps;
        `device_bytes`, the most memory of tensors on a CUDA device, None on CPU.
    """
    device, steps = settings["device"], settings["steps"]
    torch.manual_seed(settings["seed"])
    preset: Any = MODELS[encoder]
    width = {name: settings[name] for name in ("d_model", "num_layers", "dropout")}
    model = preset(settings["num_items"], **width, max_length=length)
    batch = full_batch(settings["num_items"], settings["batch_size"], length)
    precision, switches = VARIANTS[variant]
    clock = _Clock(torch.device(device))
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]  # text that Lightning lists
        callbacks=[EncoderCompile(**switches), clock],
        max_steps=steps + 2,
        **harness.QUIET,
    )
    with _plain_torch() if variant == PLAIN else nullcontext():
        trainer.fit(model, DataLoader([batch] * (steps + 2), batch_size=None))  # type: ignore[arg-type]  # a list will do
    return {
        "first_seconds": clock.seconds[0],
        "step_seconds": clock.seconds[2:],
        "losses": clock.losses,
        "device_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


@contextmanager
def _plain_torch() -> Iterator[None]:
    """Let each op choose its preferred backend of those that need nothing but torch."""
    before = dict(os.environ)
    os.environ.update({op.variable: op.plain for op in ALL_BACKENDS})
    try:
        yield
    finally:
        for op in ALL_BACKENDS:
            os.environ.pop(op.variable, None)
        os.environ.update(before)


class _Clock(pl.Callback):
    """Record seconds and losses of steps, and wait for the device before and after each."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._device = device
        self._began = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self._began = self._now()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds.append(self._now() - self._began)
        self.losses.append(float(outputs["loss"]))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
