"""`seqrec benchmark training`: a training step in several precisions, compiled, recomputed, and in plain PyTorch."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from seqrec.benchmark import harness
from seqrec.benchmark.catalogue import full_batch
from seqrec.benchmark.floors import Rates, floor_seconds, measure_rates, work_of
from seqrec.benchmark.harness import Benchmark, Row
from seqrec.benchmark.measurement import anonymous_bytes, peak_bytes, run_measured, timed
from seqrec.benchmark.reference_models import REFERENCES, ReferenceModel, train_reference
from seqrec.benchmark.step_clock import PROFILED_STEPS, ClockCallback, StepClock
from seqrec.data.prepare.memory import spoken_bytes
from seqrec.data.report_table import Part
from seqrec.encoders import ENCODERS
from seqrec.errors import InputError
from seqrec.evaluation.protocols import FullRanking, SampledRanking
from seqrec.experiments import MODELS
from seqrec.models import SequentialRecommender
from seqrec.models.prequential import judge_batch
from seqrec.ops import ALL_BACKENDS
from seqrec.ops.dropout import check_share
from seqrec.runs.callbacks import EncoderCompile, GraphedStep
from seqrec.types import SequenceBatch

# The same model with every op of `seqrec.ops` computed by torch's own functions.
PLAIN = "plain PyTorch"
# A model of the same kind from torch's layers, in a loop of plain PyTorch, as a user would write both.
REFERENCE = "torch.nn"
# Settings of an encoder, which a preset takes.
SHAPE = ("d_model", "num_layers", "dropout", "mixer")


@dataclass(frozen=True)
class Variant:
    """How to compute a step: the trainer's precision, and switches of `EncoderCompile` and `GraphedStep`."""

    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    compile: bool = False
    recompute: bool = False
    graphed: bool = False

    @property
    def needs_cuda(self) -> bool:
        """Whether it cannot be computed on a CPU."""
        return self.graphed or self.precision == "16-mixed"

    def callbacks(self) -> list[pl.Callback]:
        """Return new callbacks for a trainer."""
        compiled = EncoderCompile(compile=self.compile, activation_checkpointing=self.recompute)
        return [compiled, GraphedStep(enabled=self.graphed)]


VARIANTS = {
    REFERENCE: Variant(),
    PLAIN: Variant(),
    "fp32": Variant(),
    "bf16": Variant("bf16-mixed"),
    "fp16": Variant("16-mixed"),
    "graphed": Variant(graphed=True),
    "bf16, graphed": Variant("bf16-mixed", graphed=True),
    "compiled": Variant(compile=True),
    "recomputed": Variant(recompute=True),
    "bf16, compiled, recomputed": Variant("bf16-mixed", compile=True, recompute=True),
}


def benchmark_training(
    lengths: Sequence[int] = (5000,),
    *,
    encoders: Sequence[str] = ("MambaRec", "SASRec"),
    variants: Sequence[str] = ("fp32", "bf16", "compiled", "recomputed"),
    batch_size: int = 4,
    eval_batch_size: int = 0,
    d_model: int = 64,
    num_layers: int = 2,
    mixer: Literal["mamba", "mamba2", "gated_deltanet"] = "mamba",
    num_items: int = 100_000,
    dropout: float = 0.0,
    steps: int = 5,
    seed: int = 0,
    device: str = "cpu",
    json_file: str | None = None,
) -> None:
    """Time training steps and their memory, computed in several ways, and compare their losses.

    Each combination runs in a process of its own. Variants: fp32, bf16, fp16, graphed, "bf16, graphed", compiled,
    recomputed, "bf16, compiled, recomputed", all through Lightning's trainer; "plain PyTorch", which is fp32 with no
    kernels but torch's own; and "torch.nn", a model from torch's layers in a loop of plain PyTorch, as a user would
    write it.

    Args:
        lengths: Events per history.
        encoders: Names of presets.
        variants: Names of `VARIANTS`; fp16 and graphs are for cuda only. The others are compared with the first.
        batch_size: Histories per batch.
        eval_batch_size: Histories per batch of evaluation, for a second table; 0 leaves it out.
        d_model: Width.
        num_layers: Blocks.
        mixer: Mixer of the encoders that have one.
        num_items: Items of the catalogue.
        dropout: Share that is set to 0. Variants draw it from different generators, so that losses differ.
        steps: Timed steps; the fastest counts, on a GPU the fastest third.
        seed: Seed of weights, items and draws.
        device: cpu or cuda.
        json_file: File for the figures, as JSON.

    Raises:
        InputError: if an argument is out of range.
    """
    _check(encoders, variants, device)
    harness.check_numbers(1, lengths=lengths, steps=steps, empty=False)
    harness.check_numbers(0, eval_batch_size=eval_batch_size)
    check_share(dropout)
    shape = {"d_model": d_model, "num_layers": num_layers, "num_items": num_items, "dropout": dropout}
    sizes: dict[str, Any] = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "steps": steps}
    settings = {**shape, **sizes, "mixer": mixer, "seed": seed, "device": device}
    models = [{"encoder": encoder, "length": length} for encoder, length in itertools.product(encoders, lengths)]
    total = 1 + len(models) * (len(variants) + bool(eval_batch_size))
    benchmark = Benchmark(json_file, total, settings=settings, rates={}, figures=[], evaluation=[])
    with benchmark.cell("rates of the device"):
        benchmark["rates"] = run_measured(measure_rates, {"device": device}, show=benchmark.show).value

    def measure(cell: Row) -> Row:
        measured = run_measured(train_steps, {**cell, "settings": settings}, show=benchmark.show)
        found = measured.value
        if device == "cpu":
            found["bytes"] = measured.peak_anonymous - measured.anonymous_before
            # In another process, since the profiler's records take memory.
            found |= run_measured(profile_on_cpu, {**cell, "settings": settings}, show=benchmark.show).value
        return figures_of(cell, found, settings, benchmark["rates"])

    cells = [{**model, "variant": variant} for model in models for variant in variants]
    benchmark.run("figures", cells, measure, "{encoder}, {length:,} events, {variant}")
    if eval_batch_size:

        def judge(cell: Row) -> Row:
            judged: Row = run_measured(evaluate_batch, {**cell, "settings": settings}, show=benchmark.show).value
            return judged

        benchmark.run("evaluation", models, judge, "evaluation, {encoder}, {length:,} events")
    benchmark.finish(*report(benchmark))


def _check(encoders: Sequence[str], variants: Sequence[str], device: str) -> None:
    harness.check_names(ENCODERS, encoders=encoders)
    harness.check_names(VARIANTS, variants=variants)
    harness.check_device(device)
    if device == "cpu" and (found := [name for name in variants if VARIANTS[name].needs_cuda]):
        raise InputError(f"variants: {found[0]} needs device=cuda; on a CPU use fp32 or bf16")
    if REFERENCE in variants and (unknown := set(encoders) - set(REFERENCES)):
        raise InputError(f"variants: {REFERENCE} has no {unknown.pop()}, only {', '.join(REFERENCES)}; leave one out")


def report(figures: Benchmark | Mapping[str, Any]) -> list[Part]:
    """Return the title and the tables of figures by key: `settings`, `figures`, `evaluation`."""
    settings, rows, judged = figures["settings"], figures["figures"], figures["evaluation"]
    sizes = f"width {settings['d_model']}, {settings['num_layers']} blocks, batch {settings['batch_size']}"
    sizes += f", {settings['num_items']:,} items, dropout {settings['dropout']:g}"
    title = f"training step, {sizes}, fastest of {settings['steps']} on {settings['device']}"
    head = "encoder | events | computed | ms a step | ratio | events/s | of bytes floor | of FLOP floor | launches"
    head += " | kernels | CPU ms | idle | ops | memory | ratio | last loss | first step"
    table = harness.table(head, (_cells(row, first) for row, first in harness.with_first(rows, "encoder", "length")))
    parts: list[Part] = [title, table, harness.failures(rows, "{encoder}, {length:,}, {variant}")]
    if judged:
        head = "evaluation | events | histories | ms a batch | memory | of training's"
        trained = {(row["encoder"], row["length"]): row for row in reversed(rows) if not harness.failed(row)}
        table = harness.table(head, (_evaluation_cells(row, trained) for row in judged))
        parts += [table, harness.failures(judged, "evaluation, {encoder}, {length:,}")]
    return parts


def _cells(row: Row, first: Row) -> list[str]:
    name = [row["encoder"], f"{row['length']:,}", row["variant"]]
    if harness.failed(row):
        return [*name, harness.DID_NOT_RUN]
    times = [f"{row['seconds'] * 1e3:,.1f}", f"{row['seconds'] / first['seconds']:.2f}", f"{row['events/s']:,.0f}"]
    shares = [f"{row['floors'][kind] / row['seconds']:.1%}" for kind in ("bytes", "flop")]
    formats = {"launches": ",.0f", "kernels": ",.0f", "python_ms": ",.1f", "idle": ".0%", "ops": ",.0f"}
    counts = ["" if row[key] is None else format(row[key], form) for key, form in formats.items()]
    memory = [spoken_bytes(row["bytes"]), f"{row['bytes'] / max(first['bytes'], 1):.2f}"]
    return [*name, *times, *shares, *counts, *memory, f"{row['losses'][-1]:.5f}", f"{row['first_seconds']:.1f} s"]


def _evaluation_cells(row: Row, trained: Mapping[tuple[str, int], Row]) -> list[str]:
    name = [row["encoder"], f"{row['length']:,}"]
    if harness.failed(row):
        return [*name, harness.DID_NOT_RUN]
    name.append(f"{row['histories']:,}")
    first = trained.get((row["encoder"], row["length"]))
    share = "" if first is None else f"{row['bytes'] / max(first['bytes'], 1):.2f}"
    return [*name, f"{row['seconds'] * 1e3:,.1f}", spoken_bytes(row["bytes"]), share]


def figures_of(cell: Row, found: Row, settings: Mapping[str, Any], rates: Mapping[str, Any]) -> Row:
    """Return the figures of a variant from what `train_steps` found.

    Args:
        cell: `encoder`, `length` and `variant`.
        found: Result of `train_steps`, on a CPU with `bytes`, the memory of its process.
        settings: Arguments of `benchmark_training`.
        rates: Fields of `Rates`.

    Returns:
        Also the floors in seconds, `floors`; `idle`, the device's share without work, None if unknown.
    """
    seconds, busy, python = min(found["step_seconds"]), found["busy_seconds"], found["python_seconds"]
    half = VARIANTS[cell["variant"]].precision != "32-true"
    model = _model(cell["encoder"], cell["length"], settings, "meta")
    work = work_of(model, settings["batch_size"], cell["length"], activation_bytes=2 if half else 4)
    return {
        "seconds": seconds,
        "bytes": found["device_bytes"],
        "events/s": settings["batch_size"] * cell["length"] / seconds,
        "work": {"bytes": work.bytes, "flop": work.flop},
        "floors": floor_seconds(work, Rates(**rates), "bf16" if half else "fp32"),
        "idle": None if busy is None else max(0.0, 1 - busy / seconds),
        "python_ms": None if python is None else python * 1e3,
        **found,
    }


def train_steps(encoder: str, variant: str, length: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train as `seqrec fit` does, on one batch with full rows and items uniform over the catalogue.

    See `benchmark_training` for the arguments. The first steps, in which memory is first taken and kernels are
    compiled, are not timed.

    Returns:
        `first_seconds`, the first step with compilation; `step_seconds`, of each timed window; `losses`, of all steps
        but the profiled ones; `device_bytes` and `reserved_bytes`, the most memory of tensors on a CUDA device, and the
        most that torch kept, None on CPU; `layer`, of which layers `REFERENCE` is; the figures of `read_trace`, None on
        CPU.
    """
    profiled = PROFILED_STEPS if settings["device"] == "cuda" else 0
    clock, layer = _run_steps(encoder, variant, length, settings, profiled)
    figures = dict.fromkeys(("launches", "kernels", "busy_seconds", "python_seconds", "ops")) | clock.figures
    return {
        "first_seconds": clock.first_seconds,
        "step_seconds": clock.step_seconds,
        "losses": clock.losses,
        "device_bytes": clock.device_bytes,
        "reserved_bytes": clock.reserved_bytes,
        "layer": layer,
        **figures,
    }


def profile_on_cpu(encoder: str, variant: str, length: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Count the operations of a step on a CPU, and time what does not depend on their sizes.

    See `benchmark_training` for the arguments.

    Returns:
        `ops` per step, those that no other one calls; `python_seconds`, the fastest step with two events and ten items,
        None if it is compiled.
    """
    clock, _ = _run_steps(encoder, variant, length, {**settings, "steps": 1}, PROFILED_STEPS)
    if VARIANTS[variant].compile:
        return {**clock.figures, "python_seconds": None}
    few = {**settings, "batch_size": 1, "num_items": 10}
    least, _ = _run_steps(encoder, variant, 2, few, 0)
    return {**clock.figures, "python_seconds": min(least.step_seconds)}


def _run_steps(
    encoder: str, variant: str, length: int, settings: Mapping[str, Any], profiled: int
) -> tuple[StepClock, str | None]:
    device = torch.device(settings["device"])
    torch.manual_seed(settings["seed"])
    clock = StepClock(device, settings["steps"], profiled=profiled)
    batch = full_batch(settings["num_items"], settings["batch_size"], length)
    if device.type == "cuda":
        # As loaders do for a GPU.
        batch = batch.pin_memory()
    with _plain_torch() if variant in (PLAIN, REFERENCE) else nullcontext():
        if variant == REFERENCE:
            return clock, _train_reference(encoder, length, batch, clock, settings)
        _train(_model(encoder, length, settings, device), variant, batch, clock)
    return clock, None


def _train(model: SequentialRecommender, variant: str, batch: SequenceBatch, clock: StepClock) -> None:
    trainer = pl.Trainer(
        accelerator="gpu" if clock.device.type == "cuda" else "cpu",
        devices=1,
        precision=VARIANTS[variant].precision,
        callbacks=[*VARIANTS[variant].callbacks(), ClockCallback(clock)],
        max_steps=clock.total_steps,
        **harness.QUIET,
    )
    loader: Any = DataLoader([batch] * clock.total_steps, batch_size=None)  # type: ignore[arg-type]  # a list will do
    trainer.fit(model, loader)


def _train_reference(
    encoder: str, length: int, batch: SequenceBatch, clock: StepClock, settings: Mapping[str, Any]
) -> str:
    shape = {name: settings[name] for name in SHAPE if name in settings}
    with clock.device:
        model = ReferenceModel(encoder, settings["num_items"], max_length=length, device=clock.device.type, **shape)
    train_reference(model, batch, clock, steps=clock.total_steps)
    return model.layer


def evaluate_batch(
    encoder: str, length: int, settings: Mapping[str, Any], negatives: int | None = None
) -> dict[str, Any]:
    """Time the evaluation of a batch in float32, and its memory, with the optimizer's state there as in a fit.

    See `benchmark_training` for the arguments. Each history's last target is ranked against the whole catalogue, or
    against so many `negatives`.

    Returns:
        `histories` of the batch; `seconds`, of the fastest of three; `bytes`, the most memory with weights and
        optimizer.
    """
    device = torch.device(settings["device"])
    began = anonymous_bytes()
    torch.manual_seed(settings["seed"])
    model = _model(encoder, length, settings, device)
    model.protocol = FullRanking() if negatives is None else SampledRanking(negatives)
    optimizer = model.optimizer.build(model)
    few = full_batch(settings["num_items"], 1, 2).to(device)
    model.loss(model.to_scoring_space(model(few.history)), few, model.scorer()).backward()
    optimizer.step()
    batch = full_batch(settings["num_items"], settings["eval_batch_size"], length).to(device)
    model.eval()

    @torch.no_grad()
    def judge() -> None:
        judge_batch(model, batch, model.scorer())

    judge()
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else anonymous_bytes() - began
    peak = held + peak_bytes(judge, device)
    return {"histories": len(batch), "seconds": min(timed(judge, device) for _ in range(3)), "bytes": peak}


def _model(encoder: str, length: int, settings: Mapping[str, Any], device: torch.device | str) -> SequentialRecommender:
    preset: Any = MODELS[encoder]
    taken = inspect.signature(preset).parameters
    shape = {name: settings[name] for name in SHAPE if name in taken and name in settings}
    # On the device, since drawing millions of vectors on a CPU takes seconds.
    with torch.device(device):
        model: SequentialRecommender = preset(settings["num_items"], **shape, max_length=length)
    return model.to(device)


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
