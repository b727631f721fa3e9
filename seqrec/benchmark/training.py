"""`seqrec benchmark training`: a training step in several precisions, compiled, and with recomputed blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqrec.benchmark.measured_child import MemoryLimitError, run_measured
from seqrec.benchmark.table import aligned
from seqrec.benchmark.training_stages import VARIANTS, train_steps
from seqrec.data.prepare.memory import spoken_bytes
from seqrec.data.progress import Progress, print_line
from seqrec.encoders import ENCODERS
from seqrec.errors import InputError


def benchmark_training(
    lengths: Sequence[int] = (5000,),
    *,
    encoders: Sequence[str] = ("MambaRec", "SASRec"),
    variants: Sequence[str] = ("fp32", "bf16", "compiled", "recomputed"),
    batch_size: int = 4,
    d_model: int = 64,
    num_layers: int = 2,
    num_items: int = 100_000,
    steps: int = 5,
    seed: int = 0,
    device: str = "cpu",
    json_file: str | None = None,
) -> None:
    """Time training steps and their memory in several ways to compute them, and compare their losses.

    Each combination runs in a process of its own, through Lightning's trainer.

    Args:
        lengths: Events a history.
        encoders: Names of presets.
        variants: Of fp32, bf16, fp16 (cuda alone), compiled, recomputed, and "bf16, compiled, recomputed"; the others
            are compared with the first.
        batch_size: Histories a batch.
        d_model: Width.
        num_layers: Blocks.
        num_items: Items of the catalogue.
        steps: Timed steps, of which the fastest counts.
        seed: Seed of weights, items and draws.
        device: cpu or cuda.
        json_file: File that the figures are written to, as JSON.

    Raises:
        InputError: an argument is out of range.
    """
    _check(lengths, encoders, variants, steps, device)
    shared = {
        "batch_size": batch_size,
        "d_model": d_model,
        "num_layers": num_layers,
        "num_items": num_items,
        "steps": steps,
        "seed": seed,
        "device": device,
    }
    progress = Progress(print_line)
    figures: list[dict[str, Any]] = []
    for encoder in encoders:
        for length in lengths:
            for variant in variants:
                progress.note(f"{encoder}, {length:,} events, {variant} ...")
                cell = {"encoder": encoder, "length": length, "variant": variant}
                figures.append(cell | _measure({**cell, **shared}))
    title = (
        f"training step, width {d_model}, {num_layers} blocks, batch {batch_size}, {num_items:,} items, fastest of "
        f"{steps} on {device}"
    )
    print(f"\n{title}\n\n" + "\n".join(aligned(_rows(figures))))
    if json_file is not None:
        text = json.dumps({"settings": shared, "figures": figures}, indent=2)
        Path(json_file).write_text(text + "\n", encoding="utf-8")


def _measure(arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        measured = run_measured(train_steps, arguments, imports=["torch", "seqrec.models"])
    except MemoryLimitError as error:
        return {"failure": str(error)}
    found = measured.value
    held = found["device_bytes"]
    return {
        "seconds": min(found["step_seconds"]),
        "first_seconds": found["first_seconds"],
        "bytes": measured.peak_anonymous - measured.anonymous_before if held is None else held,
        "losses": found["losses"],
    }


def _rows(figures: list[dict[str, Any]]) -> list[list[str]]:
    rows = [
        ["encoder", "events", "computed", "ms a step", "ratio", "memory", "ratio", "last loss", "first step"]
    ]
    first: dict[tuple[str, int], dict[str, Any]] = {}
    for each in figures:
        name = [each["encoder"], f"{each['length']:,}", each["variant"]]
        if "failure" in each:
            rows.append([*name, each["failure"], "", "", "", "", ""])
            continue
        base = first.setdefault((each["encoder"], each["length"]), each)
        rows.append(
            [
                *name,
                f"{each['seconds'] * 1e3:,.0f}",
                f"{each['seconds'] / base['seconds']:.2f}",
                spoken_bytes(each["bytes"]),
                f"{each['bytes'] / max(base['bytes'], 1):.2f}",
                f"{each['losses'][-1]:.5f}",
                f"{each['first_seconds']:.1f} s",
            ]
        )
    return rows


def _check(
    lengths: Sequence[int], encoders: Sequence[str], variants: Sequence[str], steps: int, device: str
) -> None:
    for name, values, known in (
        ("encoders", encoders, list(ENCODERS)),
        ("variants", variants, list(VARIANTS)),
    ):
        if not values or not set(values) <= set(known):
            raise InputError(f"{name}={list(values)} must be some of {known}")
    if not lengths or min(lengths) < 1:
        raise InputError(f"lengths={list(lengths)} must be numbers of at least 1")
    if steps < 1:
        raise InputError(f"steps={steps} must be at least 1")
    if device not in ("cpu", "cuda"):
        raise InputError(f"device={device!r} must be cpu or cuda")
    if "fp16" in variants and device == "cpu":
        raise InputError("variants: fp16 needs device=cuda; on CPU take bf16")
