"""Random numbers from a counter: number j of row i of a seed is a function of the three alone, so a backward pass can
draw again what forward drew, and neither threads nor vector widths change a number. The same as `cpp/random.h`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.errors import InputError

# Numbers of a row that share 16 words: the low halves are the first 16 numbers, the high halves the others.
DRAWN, WORDS = 32, 16
_LOW = 0xFFFFFFFF


def new_seed(device: torch.device | str = "cpu") -> Tensor:
    """Draw a seed (1,) on a device from torch's generator of the device.

    On a GPU nothing waits for the number, and a recorded CUDA graph draws another one at each launch.

    Raises:
        RuntimeError: for the CPU while a CUDA graph is recorded, whose launches would all have the same seed.
    """
    device = torch.device(device)
    has_cuda = not torch.compiler.is_compiling() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if device.type == "cpu" and has_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a seed from the CPU's generator would be the same at each launch of a recorded CUDA graph")
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)


def check_seed(seed: Tensor | None, device: torch.device) -> None:
    """Raise InputError unless a seed is None, or (1,) int64 on the CPU or on a device."""
    if seed is None:
        return
    if seed.shape != (1,) or seed.dtype != torch.int64 or seed.device not in (torch.device("cpu"), device):
        there = "" if device.type == "cpu" else f" or {device}"
        raise InputError(
            f"seed must be (1,) int64 on cpu{there}, got {tuple(seed.shape)} {seed.dtype} on {seed.device}"
        )


def threshold_of(dropout: float) -> int:
    """Return the numbers of 16 bits that are dropped: those below it. The share is `dropout` to 1 / 131,072."""
    return min(round(dropout * 65536), 65535)


def kept(seed: Tensor, rows: Tensor, columns: Tensor, threshold: int) -> Tensor:
    """Return True where a number is at least the threshold.

    Args:
        seed: (1,) int64.
        rows: Rows, int64.
        columns: Columns from 0 on, int64, on the same device; rows and columns broadcast to the result's shape.
        threshold: 0 to 65,535.
    """
    key = _mixed(_mixed(seed.to(rows.device)) + rows)
    counter = torch.div(columns, DRAWN, rounding_mode="floor") * WORDS + columns % WORDS
    words = (counter * 0x9E3779B1 + (key & _LOW)) & _LOW
    words = ((words ^ (words >> 16)) * 0x7FEB352D) & _LOW
    words = words ^ (words >> 15) ^ _shifted(key, 32)
    words = (words * 0x846CA68B) & _LOW
    words = words ^ (words >> 16)
    high = torch.div(columns, WORDS, rounding_mode="floor") % 2 == 1
    return torch.where(high, words >> 16, words & 0xFFFF) >= threshold


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014) of 64 bits, which int64 holds; products wrap."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift to the right, with zeros from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64)
