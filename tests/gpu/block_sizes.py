"""Measure block sizes of the Triton kernels on this GPU, and print the rows that `TABLE` should have for it.

    python -m tests.gpu.block_sizes
    python -m tests.gpu.block_sizes --op cross_entropy --width 64 128 --dtype bfloat16

Run it from the root of a checkout. Forward and backward of a problem of each width are timed with each choice of sizes.
A row for `seqrec.ops.block_sizes.TABLE` is printed if the fastest beats the table's sizes by 3 % or more.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from seqrec.benchmark.measurement import timed
from seqrec.ops import causal_conv1d, dropout, selective_scan, ssd_scan
from seqrec.ops.block_sizes import TABLE, BlockRow, block_sizes
from seqrec.ops.cross_entropy import CrossEntropyProblem, cross_entropy

# Sizes to try, by op: every combination.
CHOICES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "causal_conv1d": {"events": (16, 32, 64), "channels": (32, 64), "warps": (4, 8)},
    "selective_scan": {"tile": (512, 1024, 2048), "forward_programs": (8, 16), "backward_programs": (4, 8)},
    "ssd": {"chunk": (32, 64, 128), "tile": (2048, 4096), "forward_warps": (4, 8), "backward_warps": (4, 8)},
    "dropout": {"elements": (1024, 2048, 4096)},
    "cross_entropy": {"events": (16, 32, 64, 128), "candidates": (16, 32, 64), "warps": (4, 8), "programs": (1, 2)},
}
# Share of the time of the table's sizes that another choice must save, since times differ from run to run.
LEAST_GAIN = 0.03
Step = Callable[[], object]


def problem(op: str, width: int, dtype: torch.dtype, device: str, events: int) -> Step:
    """Return forward and backward of an op: 16 histories, and 4,096 candidates of the softmax.

    Args:
        op: Key of `TABLE`.
        width: As in `BlockRow`.
        dtype: Of the activations; weights are float32.
        device: Where to compute.
        events: Events of a history.
    """

    def normal(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, dtype=of, device=device, requires_grad=True)

    rows, wide = 16, (16, events, 64)
    if op == "cross_entropy":
        states, vectors = (normal(n, width).detach() for n in (rows * events, 4096))
        target, own = (
            torch.zeros(len(states), device=device),
            torch.zeros(len(states), dtype=torch.int64, device=device),
        )
        sums = torch.zeros(vectors.shape, device=device)
        given = CrossEntropyProblem(states, vectors, target, own, block=len(states), to_states=True, to_vectors=sums)
        return lambda: cross_entropy(given, backend="triton")
    if op == "dropout":
        seed, x = torch.ones(1, dtype=torch.int64, device=device), normal(*wide)
        return lambda: dropout(x, 0.2, seed=seed, backend="triton").sum().backward()
    if op == "causal_conv1d":
        x, weight = normal(rows, events, width), normal(width, 4, of=torch.float32)
        return lambda: causal_conv1d(x, weight, silu=True, backend="triton").sum().backward()
    decays = -torch.ones((64, width) if op == "selective_scan" else (1,), device=device)
    if op == "selective_scan":
        inputs = (normal(*wide), normal(*wide), decays, normal(rows, events, width), normal(rows, events, width))
        return lambda: selective_scan(*inputs, delta_softplus=True, backend="triton").sum().backward()  # type: ignore[union-attr]
    heads = (normal(rows, events, 1, 64), normal(rows, events, 1), decays)
    groups = (normal(rows, events, 1, width), normal(rows, events, 1, width))
    return lambda: ssd_scan(*heads, *groups, delta_softplus=True, backend="triton").sum().backward()  # type: ignore[union-attr]


def combinations(op: str) -> Iterator[dict[str, int]]:
    """Yield every choice of sizes of an op."""
    names = CHOICES[op]
    return (dict(zip(names, values, strict=True)) for values in itertools.product(*names.values()))


def measure(
    op: str, width: int, dtype: torch.dtype, device: str, events: int = 1000, rounds: int = 5
) -> dict[str, Any]:
    """Return the seconds of the table's sizes and of each choice, fastest first, and the choices that fail.

    Args:
        op: Key of `TABLE`.
        width: As in `BlockRow`.
        dtype: Of the activations.
        device: Where to compute.
        events: Events of a history.
        rounds: Calls of each choice, of which the fastest counts.
    """
    step, found, failed = problem(op, width, dtype, device, events), [], {}
    for sizes in [{}, *combinations(op)]:
        with mock.patch.dict(TABLE, {op: (*TABLE[op], BlockRow("", 0, sizes))}):
            try:
                step()
                found.append((min(timed(step, device) for _ in range(rounds)), sizes))
            except Exception as error:  # A choice may exceed the registers or the shared memory in several ways.
                failed[json.dumps(sizes)] = f"{type(error).__name__}: {error}"[:200]
    of_table = next((seconds for seconds, sizes in found if not sizes), None)
    ranked = [{"seconds": seconds, **sizes} for seconds, sizes in sorted(found, key=lambda pair: pair[0]) if sizes]
    shape = {"op": op, "width": width, "dtype": str(dtype).removeprefix("torch.")}
    table = dict(block_sizes(op, torch.device(device), width))
    return {**shape, "table": table, "seconds of table": of_table, "choices": ranked, "failed": failed}


def row_of(found: Mapping[str, Any], card: str) -> str | None:
    """Return the row that the table should have for what was measured; None if its sizes are fast enough."""
    if not found["choices"]:
        return None
    best, now = found["choices"][0], found["seconds of table"]
    if now is not None and best["seconds"] > (1 - LEAST_GAIN) * now:
        return None
    sizes = {name: size for name, size in best.items() if name != "seconds"}
    return f'"{found["op"]}": BlockRow("{card}", {found["width"]}, {json.dumps(sizes)})'


def main() -> None:
    """Read the command line, measure, and print rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=CHOICES, nargs="*", default=list(CHOICES), help="ops; all without it")
    parser.add_argument("--width", type=int, nargs="*", default=[16, 64], help="widths of problems, as in BlockRow")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of activations")
    parser.add_argument("--events", type=int, default=1000, help="events of each of 16 histories")
    given = parser.parse_args()
    card = torch.cuda.get_device_name()
    for op, width in itertools.product(given.op, given.width):
        found = measure(op, width, getattr(torch, given.dtype), "cuda", given.events)
        print(f"{op}, width {width}, {given.dtype}: {found['seconds of table']} s with {found['table']}")
        for choice in found["choices"][:3]:
            print(f"    {choice}")
        print(f"    {row_of(found, card) or 'the table is fast enough'}", flush=True)


if __name__ == "__main__":
    main()
