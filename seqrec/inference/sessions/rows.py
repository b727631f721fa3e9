"""Rows of states as bytes without a header, for stores that keep one header for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from seqrec.encoders.state import State, as_bytes


class StateRows:
    """Turns states into bytes row by row, and back. B rows.

    `StateFormat` says whose states these are, and has to be asked first: here nothing is checked.

    Args:
        like: A state with the names, types and shapes of all others.
    """

    def __init__(self, like: State) -> None:
        self._like = like.to("meta")
        self._sizes = [x.shape[1:].numel() * x.element_size() for x in like.tensors.values()]

    def to_rows(self, state: State) -> list[bytes]:
        """B runs of `State.row_bytes` bytes."""
        parts = [
            as_bytes(x).view(len(state), size)
            for x, size in zip(state.tensors.values(), self._sizes, strict=True)
        ]
        return [row.tobytes() for row in torch.cat(parts, 1).numpy()]

    def from_rows(self, rows: Sequence[bytes], device: torch.device | str) -> State:
        """Inverse of `to_rows`, bit for bit, for one row or more."""
        # A copy that torch may own: bytes cannot be written to, and tensors can.
        flat = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(
            len(rows), sum(self._sizes)
        )
        tensors, begin = {}, 0
        for (name, like), size in zip(self._like.tensors.items(), self._sizes, strict=True):
            # A copy of each, for alignment.
            part = flat[:, begin : begin + size].clone(memory_format=torch.contiguous_format)
            tensors[name] = part.view(-1).view(like.dtype).view(len(rows), *like.shape[1:]).to(device)
            begin += size
        return State(tensors, self._like.encoder)
