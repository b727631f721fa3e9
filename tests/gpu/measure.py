"""Measure and check everything on a machine with one GPU, in ten minutes, most important parts first.

    python -m tests.gpu.measure --out results.json
    python -m tests.gpu.measure --out results.json --report_only  # the tables and the targets again
    python -m tests.gpu.measure --out results.json --only machine,training --budget_s 300
    python -m tests.gpu.measure --out results.json --dry_run      # the same at tiny sizes on a CPU

Run it from the root of a checkout. Each part runs in a process of its own with a time limit, and the file is written
after each, with all that a part found before it failed or was stopped. Only torch, lightning, torchmetrics, triton,
numpy, psutil, tabulate, jsonargparse, pytest and hypothesis are needed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Less time than this is not enough for a process to start.
LEAST_SECONDS = 12
# The log of the study's efficiency table: histories of 1,000 tracks of LFM-1b. Users and the rows of the item table,
# raw ids that are not compacted, are those that its published outputs print for an excerpt with shorter histories.
STUDY_USERS, STUDY_ITEMS, STUDY_EPOCHS = 25_001, 32_283_770, 5
# Its memory in GB, seconds of five epochs, and seconds of an evaluation, on a GPU that it does not name.
STUDY = {"SASRec": (25.42, 1319.18, 119.2), "RecMamba": (20.48, 819.13, 64.32), "MambaRec": (24.26, 840.28, 61.86)}
STUDY_NEGATIVES = 100
# Widths in its repository, where SASRec had another one than the others; also SASRec at theirs.
STUDY_WIDTH, STUDY_SASREC_WIDTH = 32, 50
# Rows of the item table of `kuairand_like`.
TRAIN_ITEMS = 4_227_671

Note = Callable[[Any], None]


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    device: str
    lengths: Sequence[int]
    batch_size: int
    d_model: int
    steps: int
    num_items: int
    train_items: int
    study_items: int
    bulk_items: int
    bulk_users: int
    bulk_length: int
    eval_batch_size: int
    rate_scale: int
    seconds: float
    rates: dict[str, Any] | None = None


FULL = Sizes("cuda", (1000, 5000), 16, 32, 30, 100_000, TRAIN_ITEMS, STUDY_ITEMS, 1_000_000, 4096, 200, 128, 1, 0.3)
DRY = Sizes("cpu", (12,), 2, 8, 1, 300, 300, 500, 400, 32, 12, 4, 16, 0.001)


@dataclass(frozen=True)
class Part:
    """A part of the run: what it does with the sizes and a function that notes results, and its time limit.

    It may also use what earlier parts left of their time.
    """

    limit_s: int
    run: Callable[[Sizes, Note], None]
    argument: str | None = None


def machine(sizes: Sizes, note: Note) -> None:
    """Versions, fast paths, and rates of the device."""
    import platform

    import lightning
    import torch

    from seqrec.benchmark.floors import measure_rates
    from seqrec.ops import ALL_BACKENDS

    facts = {"python": platform.python_version(), "torch": torch.__version__, "lightning": lightning.__version__}
    facts["device"] = torch.cuda.get_device_name() if sizes.device == "cuda" else platform.processor()
    note({"facts": facts})
    note({"rates": measure_rates(device=sizes.device, scale=sizes.rate_scale)})
    for op in ALL_BACKENDS:
        unusable = {name: op[name].why_unusable(sizes.device, torch.float32) for name in op.names}
        note({op.variable: {name: reason or "usable" for name, reason in unusable.items()}})


def tests(sizes: Sizes, note: Note, pattern: str) -> None:
    """`pytest -m gpu` of some files: counts, and the message of each failure."""
    import pytest

    counts: dict[str, int] = {}

    class Recorder:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when != "call" and report.passed:
                return
            counts[report.outcome] = counts.get(report.outcome, 0) + 1
            found: dict[str, Any] = {"counts": dict(counts)}
            if report.failed:
                found[report.nodeid] = str(report.longrepr)[-3000:]
            elif report.skipped:
                found[report.nodeid] = f"skipped: {str(report.longrepr)[-200:]}"
            note(found)

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                note({f"collecting {report.nodeid}": str(report.longrepr)[-3000:]})

    marked = [file for file in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in file.read_text(encoding="utf-8")]
    files = sorted(str(file) for file in marked if re.search(pattern, file.name))
    # The kernels of many sizes are compiled on all cores.
    parallel = ["-n", "8"] if sizes.device == "cuda" and importlib.util.find_spec("xdist") else []
    options = ["-m", "gpu", "-o", "addopts=", "-q", "-p", "no:cacheprovider", "--durations=10", *parallel]
    note({"status": int(pytest.main([*options, *files], plugins=[Recorder()]))})


def training(sizes: Sizes, note: Note, encoder: str) -> None:
    """The training table of one encoder at all lengths, and evaluation; the model of torch's layers at the end."""
    from seqrec.benchmark.training import REFERENCE, VARIANTS

    name, _, mixer = encoder.partition(" ")
    settings = _settings(sizes, mixer=mixer or "mamba", num_items=sizes.train_items)

    def train(*variants: str) -> None:
        for variant, length in itertools.product(variants, sizes.lengths):
            if not VARIANTS[variant].needs_cuda or sizes.device == "cuda":
                note({**_trained(name, variant, length, settings, sizes), "encoder": encoder})

    train("fp32", "graphed", "bf16, graphed", "bf16")
    for length in sizes.lengths:
        # As many histories as a training batch has, which is the default for long ones, and the default for others.
        for histories in (sizes.batch_size, sizes.eval_batch_size):
            found = _evaluated(name, length, {**settings, "eval_batch_size": histories})
            note({"evaluation": True, "encoder": encoder, "length": length, **found})
    train(REFERENCE)


def study(sizes: Sizes, note: Note) -> None:
    """The rows of the study's efficiency table, and the same at five times the length; SASRec at two widths."""
    rows = [("MambaRec", STUDY_WIDTH), ("SASRec", STUDY_SASREC_WIDTH), ("RecMamba", STUDY_WIDTH)]
    for length, (encoder, width) in itertools.product(sizes.lengths, [*rows, ("SASRec", STUDY_WIDTH)]):
        settings = _settings(sizes, d_model=width, num_items=sizes.study_items, dropout=0.5)
        for variant in ("fp32", "graphed") if sizes.device == "cuda" else ("fp32",):
            row = _trained(encoder, variant, length, settings, sizes)
            if "failure" not in row:
                row["seconds of 5 epochs"] = STUDY_EPOCHS * (STUDY_USERS // sizes.batch_size) * row["seconds"]
            names = ("GB", "seconds of 5 epochs", "seconds of evaluation")
            note({**row, "width": width, "study": dict(zip(names, STUDY[encoder], strict=True))})
    for length, (encoder, width), negatives in itertools.product(sizes.lengths, rows, (STUDY_NEGATIVES, None)):
        settings = _settings(sizes, d_model=width, num_items=sizes.study_items, dropout=0.5)
        found = _evaluated(encoder, length, settings, negatives)
        if "failure" not in found:
            found["seconds of evaluation"] = STUDY_USERS / sizes.eval_batch_size * found["seconds"]
        cell = {"encoder": encoder, "length": length, "width": width, "negatives": negatives}
        note({"evaluation": True, **cell, **found})


def loading(sizes: Sizes, note: Note) -> None:
    """Events/s of a loader alone, and the idle share of MambaRec's steps with it, with and without prefetch."""
    for length in sizes.lengths:
        note({"length": length, **_attempt(_load, length, sizes)})
        for prefetch in (False, True):
            note({"length": length, "prefetch": prefetch, **_attempt(_train_from_loader, length, prefetch, sizes)})


def _load(length: int, sizes: Sizes) -> dict[str, Any]:
    batches = iter(_loader(length, sizes, None))
    next(batches)
    began = time.perf_counter()
    count = sum(1 for _ in batches)
    return {"loaded events/s": count * sizes.batch_size * length / (time.perf_counter() - began)}


def _train_from_loader(length: int, prefetch: bool, sizes: Sizes) -> dict[str, Any]:
    import lightning.pytorch as pl
    import torch

    from seqrec.benchmark import harness
    from seqrec.benchmark.step_clock import ClockCallback, StepClock
    from seqrec.experiments import MODELS
    from seqrec.runs.callbacks import GraphedStep

    place = torch.device(sizes.device)
    clock = StepClock(place, sizes.steps)
    with place:
        model: Any = MODELS["MambaRec"](sizes.train_items, d_model=sizes.d_model, num_layers=2, max_length=length)
    callbacks = [ClockCallback(clock), GraphedStep(enabled=sizes.device == "cuda")]
    accelerator = "gpu" if sizes.device == "cuda" else "cpu"
    trainer = pl.Trainer(accelerator, callbacks=callbacks, max_steps=clock.total_steps, devices=1, **harness.QUIET)
    trainer.fit(model, _loader(length, sizes, place if prefetch else None))
    seconds, busy = min(clock.step_seconds), clock.figures.get("busy_seconds")
    idle = None if busy is None else max(0.0, 1 - busy / seconds)
    return {"events/s": sizes.batch_size * length / seconds, "idle": idle}


def _loader(length: int, sizes: Sizes, ahead: Any) -> Any:
    """Return a loader of windows of a log in memory, whose batches are copied `ahead` to a device; None does not."""
    import numpy as np

    from seqrec.data.collate import WindowDataset
    from seqrec.data.event_block import EventBlock
    from seqrec.data.loader import ResumableLoader
    from seqrec.data.sampler import BatchSampler
    from seqrec.data.windows import StridedWindows

    users, events = 4 * sizes.batch_size, 12 * length + 1
    rng = np.random.default_rng(0)
    item_ids = rng.integers(1, sizes.train_items + 1, users * events, np.int32)
    offsets = np.arange(users + 1, dtype=np.int64) * events
    block = EventBlock(item_ids, offsets, np.arange(1, users + 1), sizes.train_items)
    windows = StridedWindows()

    def index(rng: Any) -> Any:
        return windows.index(offsets[:-1], offsets[1:] - 1, length, rng)

    dataset, sampler = WindowDataset(block, offsets[1:]), BatchSampler(index, batch_size=sizes.batch_size, shuffle=True)
    loader = ResumableLoader(dataset, batch_size=None, sampler=sampler, pin_memory=sizes.device == "cuda")
    loader.device = ahead
    return loader


def streaming(sizes: Sizes, note: Note) -> None:
    """One further event by a step and by encoding again, and lists from a large catalogue."""
    from seqrec.benchmark.inference import time_events

    shared = {"num_items": sizes.num_items, "d_model": sizes.d_model, "rounds": 3, "seed": 0, "device": sizes.device}
    note({"bulk": True, **_attempt(_bulk, sizes)})
    for encoder in ("MambaRec", "SASRec", "GRU4Rec", "RecMamba"):
        settings = {**shared, "encoder": encoder}
        note({"events": True, **_attempt(lambda of=settings: {"rows": time_events(sizes.lengths, of)})})


def _bulk(sizes: Sizes) -> dict[str, Any]:
    """Return lists/s of some users, and an estimate of the time for a million of them, as `seqrec benchmark bulk`."""
    from seqrec.benchmark.bulk import estimated_seconds, time_lists

    settings = {"users": sizes.bulk_users, "length": sizes.bulk_length, "top_k": 100, "d_model": sizes.d_model}
    found = time_lists("MambaRec", sizes.bulk_items, {**settings, "rounds": 2, "seed": 0, "device": sizes.device})
    shape = {"encoder": "MambaRec", "items": sizes.bulk_items, "length": sizes.bulk_length, **found}
    estimate = {"estimated seconds of 1,000,000 users": estimated_seconds(found, 1_000_000)}
    return {**shape, "lists/s": found["users"] / found["seconds"], **estimate}


def ops(sizes: Sizes, note: Note) -> None:
    """Forward and backward of each op by each of its backends, and of blocks of the encoders."""
    from seqrec.benchmark.scan import time_blocks
    from tests.gpu.test_cuda_backends import OPS

    shared = {"batch_size": sizes.batch_size, "device": sizes.device, "seconds": sizes.seconds}
    for length in sizes.lengths:
        for op in OPS:
            note({"op": op, "length": length, **_attempt(_time_op, op, length, sizes)})
        note({"op": "dropout", "length": length, **_attempt(_time_dropout, length, sizes)})
        blocks = {"d_model": sizes.d_model, "d_state": 32, "dropout": 0.2}
        note({"blocks": length, **_attempt(time_blocks, length, **blocks, **shared)})


def _time_op(op: str, length: int, sizes: Sizes) -> dict[str, Any]:
    """Return the fastest seconds of each backend but the reference."""
    import torch

    from seqrec.benchmark.measurement import timed
    from tests.gpu.test_cuda_backends import OPS

    function, backends, make, _ = OPS[op]
    inner, last = 2 * sizes.d_model, 4 if op == "causal_conv1d" else 32
    given = {name: x for name, x in make(sizes.batch_size, length, inner, last).items() if x.is_floating_point()}
    del given["initial_state"]
    leaves = {name: x.to(sizes.device, torch.float32).requires_grad_() for name, x in given.items()}
    options = {} if op == "causal_conv1d" else {"delta_softplus": True}
    seconds: dict[str, Any] = {}
    for name in backends.names:
        reason = backends[name].why_unusable(sizes.device, torch.float32)
        if name == "reference" or reason is not None:
            continue

        def step(backend: str = name) -> None:
            torch.autograd.grad(function(**leaves, **options, backend=backend).sum(), list(leaves.values()))

        step()
        seconds[name] = min(timed(step, sizes.device) for _ in range(5))
    return {"seconds": seconds}


def _time_dropout(length: int, sizes: Sizes) -> dict[str, Any]:
    """Return the fastest seconds of each backend but the reference, forward and backward."""
    import torch

    from seqrec.benchmark.measurement import timed
    from seqrec.ops.dropout import DROPOUT_BACKENDS, dropout

    x = torch.randn(sizes.batch_size, length, sizes.d_model, device=sizes.device, requires_grad=True)
    seconds: dict[str, Any] = {}
    for name in DROPOUT_BACKENDS.names:
        if name == "reference" or DROPOUT_BACKENDS[name].why_unusable(sizes.device, torch.float32) is not None:
            continue

        def step(backend: str = name) -> None:
            torch.autograd.grad(dropout(x, 0.2, backend=backend).sum(), x)

        step()
        seconds[name] = min(timed(step, sizes.device) for _ in range(5))
    return {"seconds": seconds}


def softmax(sizes: Sizes, note: Note) -> None:
    """The softmax loss with its gradients by each backend, over shared negatives and over a catalogue."""
    import torch

    from seqrec.ops.cross_entropy import CROSS_ENTROPY_BACKENDS, CrossEntropyProblem, cross_entropy

    for length, candidates in itertools.product(sizes.lengths, (256, sizes.num_items)):
        for dtype in (torch.float32, torch.bfloat16):
            generator = torch.Generator(sizes.device).manual_seed(0)
            events = sizes.batch_size * length
            states, vectors = (
                torch.randn(n, sizes.d_model, device=sizes.device, generator=generator).to(dtype)
                for n in (events, candidates)
            )
            target, own = states.float().sum(1), torch.arange(events, device=sizes.device) % candidates
            sums = torch.zeros_like(vectors, dtype=torch.float32)
            problem = CrossEntropyProblem(states, vectors, target, own, max(1, (1 << 25) // candidates), True, sums)
            for name in CROSS_ENTROPY_BACKENDS.names:
                if CROSS_ENTROPY_BACKENDS[name].why_unusable(sizes.device, dtype) is not None:
                    continue

                def step(problem: Any = problem, backend: str = name) -> None:
                    cross_entropy(problem, backend=backend)

                cell = {"events": events, "candidates": candidates, "dtype": str(dtype), "backend": name}
                note({**cell, **_attempt(_time_step, step, sizes.device)})


def _time_step(step: Callable[[], None], device: str) -> dict[str, Any]:
    """Return the fastest seconds of a step, and on a GPU the most bytes that it adds."""
    import torch

    from seqrec.benchmark.measurement import peak_bytes, timed

    step()
    found = {"seconds": min(timed(step, device) for _ in range(5))}
    return found if device == "cpu" else {**found, "bytes": peak_bytes(step, torch.device(device))}


def blocks(sizes: Sizes, note: Note) -> None:
    """Block sizes of the Triton kernels, as `tests.gpu.block_sizes` measures them; on a CPU only the ops' names."""
    import torch

    from tests.gpu.block_sizes import CHOICES, measure, row_of

    if sizes.device == "cpu":
        note({"ops": list(CHOICES)})
        return
    for op, dtype in itertools.product(CHOICES, (torch.float32, torch.bfloat16)):
        found = _attempt(measure, op, sizes.d_model, dtype, sizes.device, sizes.lengths[0])
        row = row_of(found, torch.cuda.get_device_name()) if "choices" in found else None
        note({**found, "choices": found.get("choices", [])[:3], "row": row})


ENCODERS = ("MambaRec", "SASRec", "GRU4Rec", "RecMamba", "MambaRec mamba2", "RecMamba mamba2")
# Those of the targets first. Up to the backends of ops, limits add up to what a call of ten minutes has.
PARTS = {
    "machine": Part(35, machine),
    **{f"training {name}": Part(65, training, name) for name in ENCODERS[:2]},
    "study": Part(85, study),
    "tests": Part(120, tests, r"^test_(?!cuda_training)"),
    **{f"training {name}": Part(40, training, name) for name in ENCODERS[2:4]},
    "loading": Part(30, loading),
    "streaming": Part(45, streaming),
    "ops": Part(45, ops),
    "tests of training": Part(180, tests, "^test_cuda_training"),
    **{f"training {name}": Part(60, training, name) for name in ENCODERS[4:]},
    "softmax": Part(30, softmax),
    "blocks": Part(60, blocks),
}


def _settings(sizes: Sizes, **others: Any) -> dict[str, Any]:
    shape = {"batch_size": sizes.batch_size, "d_model": sizes.d_model, "num_layers": 2, "num_items": sizes.num_items}
    shape |= {"mixer": "mamba", "eval_batch_size": sizes.eval_batch_size, "dropout": 0.2, "steps": sizes.steps}
    return {**shape, "seed": 0, "device": sizes.device, **others}


def _trained(encoder: str, variant: str, length: int, settings: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    from seqrec.benchmark.floors import measure_rates
    from seqrec.benchmark.training import figures_of, profile_on_cpu, train_steps

    rates = sizes.rates or measure_rates(device=sizes.device, scale=sizes.rate_scale)
    cell = {"encoder": encoder, "length": length, "variant": variant}

    def measured() -> dict[str, Any]:
        found = train_steps(encoder, variant, length, settings)
        if sizes.device == "cpu":
            # The memory of a process that does many things would mean nothing.
            found |= {"bytes": 0, **profile_on_cpu(encoder, variant, length, settings)}
        return figures_of(cell, found, settings, rates)

    return {**cell, **_attempt(measured)}


def _evaluated(encoder: str, length: int, settings: dict[str, Any], negatives: int | None = None) -> dict[str, Any]:
    from seqrec.benchmark.training import evaluate_batch

    return _attempt(evaluate_batch, encoder, length, settings, negatives)


def _attempt(function: Callable[..., dict[str, Any]], *arguments: Any, **options: Any) -> dict[str, Any]:
    """Call a function, and return its result, or its error: the next cell may work."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        return function(*arguments, **options)
    except Exception:
        return {"failure": traceback.format_exc()[-3000:]}


def run_part(name: str, sizes: Sizes, reply: Path) -> None:
    """Run a part in this process, and write what it noted into a file after each note."""
    notes: list[Any] = []

    def note(result: Any) -> None:
        notes.append(result)
        partial = reply.with_suffix(".partial")
        partial.write_text(json.dumps(notes), encoding="utf-8")
        partial.replace(reply)
        text = json.dumps(result)
        print(f"    {text[:400]}{' ..' if len(text) > 400 else ''}", file=sys.stderr, flush=True)

    part = PARTS[name]
    part.run(sizes, note, *([] if part.argument is None else [part.argument]))


def watch_part(name: str, sizes: Sizes, limit_s: float) -> dict[str, Any]:
    """Run a part in a process of its own; return its outcome, seconds, results, and the end of its errors."""
    with tempfile.TemporaryDirectory() as folder:
        reply, errors = Path(folder, "reply.json"), Path(folder, "errors.txt")
        command = [sys.executable, "-m", "tests.gpu.measure", "--part", name, "--out", str(reply)]
        began = time.monotonic()
        with errors.open("w", encoding="utf-8") as file:
            child = subprocess.Popen(
                [*command, "--sizes", json.dumps(asdict(sizes))],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])},
            )  # fmt: skip
            try:
                status = child.wait(limit_s)
                outcome = "passed" if status == 0 else f"ended with status {status}"
            except subprocess.TimeoutExpired:
                outcome = f"stopped after {limit_s:.0f} s"
            finally:
                # The part's own processes as well.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        seconds = round(time.monotonic() - began, 1)
        results = json.loads(reply.read_text(encoding="utf-8")) if reply.exists() else []
        tail = errors.read_text(encoding="utf-8", errors="replace")[-4000:]
    return {"outcome": outcome, "seconds": seconds, "results": results, "output": tail}


def run(out: Path, names: Sequence[str], budget_s: float, sizes: Sizes) -> dict[str, Any]:
    """Run parts one after the other within a number of seconds, and write the file after each."""
    began = time.monotonic()
    found: dict[str, Any] = {"sizes": asdict(sizes), "parts": {}}
    for name in names:
        left = budget_s - (time.monotonic() - began)
        later = sum(PARTS[each].limit_s for each in names[names.index(name) + 1 :])
        limit = min(left, max(PARTS[name].limit_s, left - later))
        print(f"{name}: up to {limit:.0f} s of {left:.0f} s ...", flush=True)
        if left < LEAST_SECONDS:
            found["parts"][name] = {"outcome": "no time was left", "seconds": 0.0, "results": [], "output": ""}
        else:
            found["parts"][name] = watch_part(name, sizes, limit)
        part = found["parts"][name]
        print(f"{name}: {part['outcome']}, {part['seconds']} s", flush=True)
        if part["outcome"] != "passed":
            print(part["output"][-1500:], flush=True)
        if name == "machine":
            rates = [each["rates"] for each in part["results"] if "rates" in each]
            sizes = replace(sizes, rates=rates[0] if rates else None)
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        partial.replace(out)
    return found


def report(found: dict[str, Any]) -> str:
    """Return the failures and the tables of a run."""
    from seqrec.benchmark import training
    from tests.gpu.targets import target_table

    rows = {name: part["results"] for name, part in found["parts"].items()}
    lines = []
    for name, part in found["parts"].items():
        lines.append(f"{name}: {part['outcome']}, {part['seconds']} s")
        lines += [f"    {json.dumps(row)[-500:]}" for row in part["results"] if "failure" in row]
        if name in ("machine", "loading", "streaming", "ops", "softmax", "blocks"):
            lines += [f"    {json.dumps(_short(row))}" for row in part["results"] if "failure" not in row]
        if name.startswith("tests"):
            lines += _test_lines(part["results"])
    tables = [_study_table(rows["study"])] if rows.get("study") else []
    trained = [row for name, each in rows.items() if name.startswith("training") for row in each]
    figures = {
        "settings": _settings(Sizes(**found["sizes"])),
        "figures": [row for row in trained if "evaluation" not in row],
        "evaluation": [row for row in trained if "evaluation" in row],
    }
    parts = ["\n".join(lines), *tables, *(training.report(figures) if figures["figures"] else [])]
    parts.append(target_table(found))
    return "\n\n".join(str(part) for part in parts if part)


def _test_lines(rows: list[dict[str, Any]]) -> list[str]:
    counts = [row["counts"] for row in rows if "counts" in row]
    texts = [(test, text) for row in rows for test, text in row.items() if test not in ("counts", "status")]
    failed = [f"    {test}: {text[-300:]}" for test, text in texts if not text.startswith("skipped")]
    return [f"    {counts[-1] if counts else 'no test ran'}", *failed]


def _study_table(rows: list[dict[str, Any]]) -> str:
    """Return the study's efficiency table with ours; its figures are for 1,000 events."""
    from seqrec.benchmark import harness

    head = "study | width | events | computed | ms a step | 5 epochs s | its | memory GB | its | evaluation s"
    head += " | all items s | its"
    judged = {
        (row["encoder"], row["width"], row["length"], row["negatives"]): f"{row['seconds of evaluation']:,.1f}"
        for row in rows
        if "evaluation" in row and "failure" not in row
    }
    cells = []
    for row in rows:
        if "study" not in row or "failure" in row:
            continue
        cell = (row["encoder"], row["width"], row["length"])
        GB, epochs, evaluation = row["study"].values()
        times = [f"{row['seconds'] * 1e3:,.2f}", f"{row['seconds of 5 epochs']:,.1f}", f"{epochs:,.0f}"]
        memory = [f"{(row['device_bytes'] or 0) / 1e9:.2f}", f"{GB:.2f}"]
        evaluations = [judged.get((*cell, negatives), "") for negatives in (STUDY_NEGATIVES, None)]
        cells.append(
            [cell[0], str(cell[1]), f"{cell[2]:,}", row["variant"], *times, *memory, *evaluations, f"{evaluation:.1f}"]
        )
    return str(harness.table(head, cells))


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without its long lists, and with four digits."""
    kept = {key: value for key, value in row.items() if key not in ("losses", "step_seconds", "work")}
    return json.loads(json.dumps(kept), parse_float=lambda text: float(f"{float(text):.4g}"))


def main() -> None:
    """Read the command line, and run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all results")
    parser.add_argument("--only", default="", help=f"parts, or their first words, with commas: {', '.join(PARTS)}")
    parser.add_argument("--budget_s", type=float, help="seconds of all parts: 570, or an hour if dry")
    parser.add_argument("--report_only", action="store_true", help="print the report of the file, and measure nothing")
    parser.add_argument("--dry_run", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        run_part(given.part, Sizes(**given.sizes), given.out)
        return
    if given.report_only:
        if not given.out.is_file():
            parser.error(f"--out: {given.out} does not exist; measure first, without --report_only")
        print(report(json.loads(given.out.read_text(encoding="utf-8"))))
        return
    wanted = [name.strip() for name in given.only.split(",") if name.strip()]
    names = [name for name in PARTS if not wanted or name in wanted or name.split()[0] in wanted]
    if unknown := [each for each in wanted if each not in {*PARTS, *(name.split()[0] for name in PARTS)}]:
        parser.error(f"--only: unknown part {unknown[0]!r}; known: {', '.join(PARTS)}")
    if not given.out.absolute().parent.is_dir():
        parser.error(f"--out: the folder of {given.out} does not exist; make it first")
    budget_s = given.budget_s or (3600.0 if given.dry_run else 570.0)
    found = run(given.out, names, budget_s, DRY if given.dry_run else FULL)
    print("\n" + report(found))


if __name__ == "__main__":
    main()
