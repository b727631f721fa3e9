"""States of users as rows of one tensor, which a step reads and writes where they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrec.encoders.state import State, as_bytes, byte_view
from seqrec.ops.steps import SlabRows

# Rows of a slab when it is made; it doubles when all are in use. The state before any event is in the first.
FIRST_ROWS, FIRST_ROW = 16, 0


class SlabState:
    """A user's state in a row of a slab. The row is free for another user as soon as nothing refers to this object.

    Attributes:
        slab: The slab.
        row: Number of the row, which is written once.
    """

    __slots__ = ("row", "slab")

    def __init__(self, slab: Slab, row: int) -> None:
        self.slab, self.row = slab, row

    def __len__(self) -> int:
        return self.slab.row_bytes

    def __bytes__(self) -> bytes:
        return bytes(self[:])

    def __getitem__(self, part: slice) -> memoryview:
        """Return some of the state's bytes. Keep a reference to this object while they are in use."""
        begin = self.row * self.slab.row_bytes
        return self.slab.content[begin : begin + self.slab.row_bytes][part]

    def __del__(self) -> None:
        if self.row != FIRST_ROW:
            self.slab.free.append(self.row)


# A user's state between events.
KeptState = bytes | SlabState


class Slab:
    """Rows of states next to each other, each of which is written once and then read until nothing refers to it.

    A new state never takes the place of the one that it continues: after an error, the old one is still whole, and
    other threads can read it meanwhile. `written`, `taken` and `before` are for one thread at a time.

    Args:
        start: The state before the first event, of one row. Its tensors lie one after another in a row, and so in a
            state's bytes.

    Attributes:
        row_bytes: Bytes of a state.
        free: Rows that are not in use.
        content: All rows as bytes.
    """

    def __init__(self, start: State) -> None:
        self._start = start.to("cpu")
        self.row_bytes = start.row_bytes
        self._rows = torch.empty(0, self.row_bytes, dtype=torch.uint8)
        self._views: dict[str, Tensor] = {}
        # The bytes of each tensor in a row.
        sizes = [x[0].numel() * x.element_size() for x in self._start.tensors.values()]
        spans = pairwise(accumulate(sizes, initial=0))
        self._parts = {name: slice(*span) for name, span in zip(self._start.tensors, spans, strict=True)}
        self.free: list[int] = []
        self._reserve(FIRST_ROWS)
        self.written(self._start)

    def before(self, states: Sequence[KeptState]) -> list[SlabState]:
        """Return states as rows of this slab, after copying those that are not; no bytes are the first."""
        # Made here, as a slab that referred to itself would outlive its last user.
        first = SlabState(self, FIRST_ROW)
        # Faster than asking each for its length.
        found: list[Any] = [state if type(state) is SlabState else state or first for state in states]
        given = [place for place, state in enumerate(found) if type(state) is bytes or state.slab is not self]
        if given:
            # A copy, as tensors are writable and bytes are not.
            content = torch.frombuffer(bytearray(b"".join(bytes(found[place]) for place in given)), dtype=torch.uint8)
            for place, row in zip(given, self._copied(content.view(len(given), self.row_bytes)), strict=True):
                found[place] = row
        return found

    def taken(self, count: int) -> list[SlabState]:
        """Return rows that are not in use."""
        self._reserve(count)
        # One at a time: meanwhile, another thread may set rows free.
        return [SlabState(self, self.free.pop()) for _ in range(count)]

    def gathered(self, states: Sequence[SlabState], device: torch.device | str) -> State:
        """Return a copy of states of this slab. A GPU gets all tensors in one piece."""
        on_gpu = torch.device(device).type == "cuda"
        # Page-locked, so that Python need not wait for the copy.
        flat = torch.empty(len(states), self.row_bytes, dtype=torch.uint8, pin_memory=on_gpu)
        torch.index_select(self._rows, 0, numbers(states), out=flat)
        flat = flat.to(device, non_blocking=on_gpu)
        tensors = {name: self._tensor(name, flat[:, part]) for name, part in self._parts.items()}
        return State(tensors, self._start.encoder)

    def read(self, name: str, states: Sequence[SlabState]) -> Tensor:
        """Return a copy of one tensor of states of this slab, on the CPU."""
        return self._tensor(name, self._rows[:, self._parts[name]].index_select(0, numbers(states)))

    def write(self, name: str, states: Sequence[SlabState], x: Tensor) -> None:
        """Write one tensor of states that are rows of this slab."""
        self._rows[:, self._parts[name]].index_copy_(0, numbers(states), as_bytes(x).view(len(states), -1))

    def _tensor(self, name: str, content: Tensor) -> Tensor:
        """Return the bytes (B, ..) of one tensor of B states as that tensor."""
        like = self._start.tensors[name]
        # Copied for alignment.
        flat = content.clone(memory_format=torch.contiguous_format).view(-1)
        return flat.view(like.dtype).view(len(content), *like.shape[1:])

    def written(self, state: State) -> list[SlabState]:
        """Write states, and return them as rows. Those on a GPU are copied in one piece."""
        parts = [byte_view(x).view(len(state), -1) for x in state.tensors.values()]
        return self._copied(torch.cat(parts, 1).cpu())

    def in_place(self, before: Sequence[SlabState], after: Sequence[SlabState]) -> dict[str, SlabRows]:
        """Return those tensors of states that are float32, to be read in some rows and written to others."""
        rows = numbers(before), numbers(after)
        return {name: SlabRows(x, *rows) for name, x in self._floats().items()}

    def _floats(self) -> dict[str, Tensor]:
        """Return all rows of each tensor that is float32."""
        if not self._views:
            with torch.inference_mode(False):
                floats = self._rows.view(torch.float32)
                for name, like in self._start.tensors.items():
                    if like.dtype == torch.float32:
                        part = self._parts[name]
                        own = floats[:, part.start // 4 : part.stop // 4]
                        self._views[name] = torch.unflatten(own, 1, like.shape[1:])
        return self._views

    def _copied(self, content: Tensor) -> list[SlabState]:
        taken = self.taken(len(content))
        self._rows.index_copy_(0, numbers(taken), content)
        return taken

    def _reserve(self, count: int) -> None:
        """Have a number of rows free. The system takes memory for rows only when they are written."""
        old = len(self._rows)
        if len(self.free) < count:
            shape = max(2 * old, old + count), self.row_bytes
            with torch.inference_mode(False):
                # Not torch's: numpy asks the system for huge pages, with which steps are faster.
                rows = torch.from_numpy(np.empty(shape, np.uint8))
            rows[:old] = self._rows
            self._rows = rows
            self._views.clear()
            self.content = memoryview(rows.numpy()).cast("B")  # type: ignore[arg-type]
            # Those at the front are taken first.
            self.free[:0] = range(len(rows) - 1, old - 1, -1)


def numbers(states: Sequence[SlabState]) -> Tensor:
    """Return the (B,) int64 rows of states."""
    # Faster than a tensor of a list.
    return torch.from_numpy(np.array([state.row for state in states], np.int64))
