"""`seqrec benchmark catalogue`: the cost of a training step as the catalogue grows, by objective and optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seqrec.benchmark.catalogue_stages import OBJECTIVES, OPTIMIZERS, time_steps
from seqrec.benchmark.catalogue_tables import CatalogueFigures, as_json, as_text
from seqrec.benchmark.measured_child import MemoryLimitError, run_measured
from seqrec.data.progress import Progress, print_line
from seqrec.errors import InputError

# Above so many scores a step the whole catalogue is not scored: a step of 2^32 takes about ten seconds on two cores.
MAX_SCORES = 1 << 32


def benchmark_catalogue(
    items: Sequence[int] = (10_000, 100_000, 1_000_000, 30_000_000),
    *,
    objectives: Sequence[str] = OBJECTIVES,
    optimizers: Sequence[str] = OPTIMIZERS,
    encoder: str = "MambaRec",
    d_model: int = 32,
    batch_size: int = 16,
    length: int = 1000,
    steps: int = 5,
    seed: int = 0,
    device: str = "cpu",
    json_file: str | None = None,
) -> None:
    """Time training steps and their memory for catalogues of several sizes.

    Each combination runs in a process of its own. Objectives beside the first are measured with the last optimiser
    alone, since the update does not depend on them; `FullSoftmax`, whose gradients are dense, with dense Adam.

    Args:
        items: Sizes of the catalogue, ascending.
        objectives: Of BCE, GBCE, SampledSoftmax, InBatchSoftmax, FullSoftmax.
        optimizers: Of dense_adam, lazy_adam, rowwise_adagrad: how the item table is updated; all else has Adam.
        encoder: Name of a preset.
        d_model: Width.
        batch_size: Histories a batch.
        length: Events a history.
        steps: Timed steps, of which the fastest counts.
        seed: Seed of weights, items and draws.
        device: cpu or cuda.
        json_file: File that the figures are written to, as JSON.

    Raises:
        InputError: an argument is out of range.
    """
    _check(items, objectives, optimizers, steps, json_file)
    settings = {
        "encoder": encoder,
        "d_model": d_model,
        "batch_size": batch_size,
        "length": length,
        "steps": steps,
        "seed": seed,
        "device": device,
    }
    progress = Progress(print_line)
    figures: list[CatalogueFigures] = []
    for objective, optimizer in _combinations(objectives, optimizers):
        for num_items in items:
            progress.note(f"{objective}, {optimizer}, {num_items:,} items ...")
            arguments = {"num_items": num_items, "objective": objective, "optimizer": optimizer, **settings}
            if objective == "FullSoftmax" and num_items * batch_size * length > MAX_SCORES:
                reason = f"{num_items * batch_size * length:.0e} scores a step are left out; a sampled objective serves"
                figures.append(CatalogueFigures(num_items, objective, optimizer, None, None, reason))
                continue
            figures.append(_measure(arguments))
            seconds = figures[-1].seconds
            progress.note("    did not run" if seconds is None else f"    {seconds * 1e3:,.0f} ms a step")
    print(f"\n{as_text(settings, figures)}")
    if json_file is not None:
        Path(json_file).write_text(as_json(settings, figures) + "\n", encoding="utf-8")


def _measure(arguments: dict[str, object]) -> CatalogueFigures:
    cell = {name: arguments[name] for name in ("num_items", "objective", "optimizer")}
    imports = ["torch", "seqrec.models"]
    try:
        measured = run_measured(time_steps, arguments, imports=imports)
    except MemoryLimitError as error:
        return CatalogueFigures(**cell, seconds=None, peak_bytes=None, failure=str(error))  # type: ignore[arg-type]
    on_device = measured.value["device_bytes"]
    return CatalogueFigures(
        **cell,  # type: ignore[arg-type]  # three plain values
        seconds=min(measured.value["step_seconds"]),
        peak_bytes=measured.peak_resident if on_device is None else on_device,
    )


def _combinations(objectives: Sequence[str], optimizers: Sequence[str]) -> list[tuple[str, str]]:
    sampled = [objective for objective in objectives if objective != "FullSoftmax"]
    pairs = [(sampled[0], optimizer) for optimizer in optimizers] if sampled else []
    pairs += [(objective, optimizers[-1]) for objective in sampled[1:]]
    return pairs + [("FullSoftmax", "dense_adam")] * ("FullSoftmax" in objectives)


def _check(
    items: Sequence[int],
    objectives: Sequence[str],
    optimizers: Sequence[str],
    steps: int,
    json_file: str | None,
) -> None:
    for name, values, known in (
        ("objectives", objectives, OBJECTIVES),
        ("optimizers", optimizers, OPTIMIZERS),
    ):
        if not values or not set(values) <= set(known):
            raise InputError(f"{name}={list(values)} must be some of {', '.join(known)}")
    if not items or min(items) < 2:
        raise InputError(f"items={list(items)} must be sizes of at least 2")
    if steps < 1:
        raise InputError(f"steps={steps} must be at least 1")
    # Now rather than after an hour.
    if json_file is not None and not Path(json_file).absolute().parent.is_dir():
        raise InputError(f"json_file={json_file!r} lies in a folder that does not exist; make it first")
