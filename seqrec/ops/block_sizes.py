"""Block sizes of the Triton kernels that depend on card and shape.

`python -m tests.gpu.block_sizes`, from a checkout, measures them on a GPU and prints the row of the fastest.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch

__all__ = ["TABLE", "BlockRow", "block_sizes"]


class BlockRow(NamedTuple):
    """Sizes of an op's kernels for some cards and shapes.

    Attributes:
        card: How the name of the card begins, as `torch.cuda.get_device_name` returns it, such as "NVIDIA H100"; "" is
            any card.
        width: Least width of a problem: D of `cross_entropy`, states N of the scans, channels of the convolution.
        sizes: Name -> size. Earlier rows decide those that it lacks.
    """

    card: str
    width: int
    sizes: Mapping[str, int]


# For each op rows for any card and width come first. Of the rows that fit, the last one that has a size decides it.
TABLE: dict[str, tuple[BlockRow, ...]] = {
    # A line of memory holds 32 channels of float32; more events make fewer parts of sums, but also fewer programs.
    # Each thread has 4 numbers of a block; backward keeps 2 W - 1 blocks of inputs in registers.
    "causal_conv1d": (BlockRow("", 0, {"events": 32, "channels": 32, "warps": 8}),),
    # States of a program, 32 per lane: with fewer, lanes would repeat each other's work on an event; with more, they
    # would run out of registers. More channels than `widest` would share no more work. Programs, of one warp each, are
    # those that run at the same time on one multiprocessor, limited by their registers.
    "selective_scan": (BlockRow("", 0, {"tile": 1024, "widest": 128, "forward_programs": 16, "backward_programs": 8}),),
    # Events of a chunk, fewer beside more states; numbers of a tile, (P, N) or (S, N), that fit into the registers of a
    # program; most of a program's width; programs of a multiprocessor, limited by their registers, and warps of each.
    "ssd": (
        BlockRow("", 0, {"chunk": 64, "tile": 4096, "widest": 64}),
        BlockRow("", 0, {"forward_programs": 2, "backward_programs": 1, "forward_warps": 4, "backward_warps": 8}),
    ),
    # Elements of a program, which divide the 4,096 that share a row of random numbers.
    "dropout": (BlockRow("", 0, {"elements": 2048}),),
    # The largest blocks whose float32 numbers ptxas keeps in the registers of an H100, with at most 50 bytes spilled.
    "cross_entropy": (
        BlockRow("", 0, {"events": 64, "candidates": 32, "warps": 4, "programs": 2}),
        BlockRow("", 65, {"events": 32, "candidates": 32, "warps": 8, "programs": 1}),
        BlockRow("", 129, {"events": 16, "candidates": 16, "warps": 8, "programs": 1}),
    ),
}


def block_sizes(op: str, device: torch.device, width: int = 0) -> Mapping[str, int]:
    """Return the block sizes of an op's kernels on a device.

    Args:
        op: Key of `TABLE`.
        device: Where the kernels run. A CPU, on which Triton interprets them, has the sizes of any card.
        width: As in `BlockRow`.

    Example:
        >>> import torch
        >>> from seqrec.ops.block_sizes import block_sizes
        >>> block_sizes("causal_conv1d", torch.device("cpu"))["events"]
        32
    """
    sizes: dict[str, int] = {}
    for row in TABLE[op]:
        # The name of the card is asked for only if it matters: torch needs a GPU for it.
        if width >= row.width and (not row.card or _card(device).startswith(row.card)):
            sizes |= row.sizes
    return sizes


def _card(device: torch.device) -> str:
    return _name(device.index) if device.type == "cuda" else ""


@functools.cache
def _name(index: int | None) -> str:
    return torch.cuda.get_device_name(index)
