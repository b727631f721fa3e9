"""State of an encoder after its users' events, from which it continues without reading them again, and its bytes.

An encoder makes a state of zeros (`SequenceEncoder.init_state`) and returns a new one from each call of `step` or
`extend`. Shapes: B rows, one per user.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from seqrec.aliases import __version__
from seqrec.errors import InputError
from seqrec.specs import to_spec

MAGIC = b"seqrecS1"
LENGTHS = struct.Struct("<I")
# Rows, and the checksum of the tensors' bytes.
COUNTS = struct.Struct("<QI")


@dataclass(frozen=True)
class State:
    """An encoder's memory of the events of B users, as plain tensors. It is never written to.

    Attributes:
        tensors: Name -> (B, ...). Rows do not depend on each other.
        encoder: Name and digest of the encoder's arguments; see `encoder_digest`.
    """

    tensors: dict[str, Tensor]
    encoder: str

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @property
    def row_bytes(self) -> int:
        """Size of one user's row in bytes, which does not depend on the user's number of events."""
        return sum(_row_size(x) for x in self.tensors.values())

    def to(self, device: torch.device | str) -> State:
        """Copy to another device. Tensors keep their dtypes, which differ within a state."""
        return replace(self, tensors={name: x.to(device) for name, x in self.tensors.items()})

    def gather(self, rows: Tensor | Sequence[int]) -> State:
        """Return the users at `rows`, in that order; repeats are allowed.

        Raises:
            InputError: if the state does not have a row.
        """
        index = torch.as_tensor(rows, dtype=torch.int64)
        if index.dim() != 1 or (len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self)):
            raise InputError(
                f"rows={index.tolist()} must be a list of numbers from 0 to {len(self) - 1}: the state has "
                f"{len(self)} rows"
            )
        tensors = {name: x.index_select(0, index.to(x.device)) for name, x in self.tensors.items()}
        return replace(self, tensors=tensors)

    @staticmethod
    def stack(states: Sequence[State]) -> State:
        """Concatenate the users of all states; the inverse of `gather` row by row.

        Raises:
            InputError: if no state is given, or encoders, window lengths, dtypes or devices differ.
        """
        if not states:
            raise InputError("states is empty; give at least one")
        first = _layout(states[0])
        for number, state in enumerate(states):
            if state.encoder != states[0].encoder or _layout(state) != first:
                raise InputError(
                    f"states[{number}] is of {state.encoder} with {_layout(state)}, but states[0] is of "
                    f"{states[0].encoder} with {first}; stack states of one model, on one device"
                )
        tensors = {name: torch.cat([s.tensors[name] for s in states]) for name in states[0].tensors}
        return replace(states[0], tensors=tensors)


def encoder_digest(encoder: nn.Module) -> str:
    """Return the name of an encoder with a digest of its arguments, and of whether it reads gaps, not of its weights.

    Raises:
        TypeError: if the encoder does not keep its constructor arguments as attributes.
    """
    spec = json.dumps(to_spec(encoder), sort_keys=True) + ("gaps" if getattr(encoder, "reads_gaps", False) else "")
    return f"{type(encoder).__name__}-{hashlib.sha256(spec.encode()).hexdigest()[:16]}"


class StateFormat:
    """Converts states of one model to bytes and back, and refuses those of any other model.

    The bytes begin with a header: the library's version, the encoder's arguments and weights (as digests), and names,
    dtypes and shapes of the tensors. States of a retrained model are refused, because they mean nothing to other
    weights; compute them again from the events. The digest of the weights is computed once, here: make a new format
    when weights change. `like` is any state of the encoder, such as `model.init_state(1)`.

    Raises:
        InputError: if `like` is of another encoder.

    Example:
        >>> from seqrec.encoders import GRU4Rec
        >>> from seqrec.encoders.state import StateFormat
        >>> encoder = GRU4Rec(d_model=8)
        >>> state = encoder.init_state(2, max_length=50)
        >>> states = StateFormat(encoder, like=state)
        >>> len(states.from_bytes(states.to_bytes(state)))
        2
    """

    def __init__(self, encoder: nn.Module, like: State) -> None:
        if like.encoder != encoder_digest(encoder):
            raise InputError(
                f"like is a state of {like.encoder}, but the encoder is {encoder_digest(encoder)}; take "
                "`model.init_state(1)` of the same model"
            )
        self.encoder = like.encoder
        self._like = like
        self._header = {
            "version": __version__,
            "encoder": like.encoder,
            "weights": weights_digest(encoder),
            "byte_order": sys.byteorder,
            "tensors": {name: _entry(x) for name, x in like.tensors.items()},
        }
        # Compact and in one order, so that equal headers are equal bytes.
        self._header_bytes = json.dumps(self._header, separators=(",", ":")).encode()

    def to_bytes(self, state: State) -> bytes:
        """Return the state as bytes: a header of some hundred bytes, and `row_bytes` per row.

        Raises:
            InputError: if the state is of another encoder, or has another window.
        """
        tensors = {name: _entry(x) for name, x in state.tensors.items()}
        self._check({**self._header, "encoder": state.encoder, "tensors": tensors})
        payload = b"".join(as_bytes(x).numpy().tobytes() for x in state.tensors.values())
        head = [MAGIC, LENGTHS.pack(len(self._header_bytes)), self._header_bytes]
        return b"".join([*head, COUNTS.pack(len(state), zlib.crc32(payload)), payload])

    def from_bytes(self, data: bytes, device: torch.device | str | None = None) -> State:
        """Invert `to_bytes`, bit for bit; the device None is that of `like`.

        Raises:
            InputError: if the bytes are no state, are incomplete or damaged, or are a state of another model, another
                version of the library or another window.
        """
        header, begin = self._read_header(data)
        if header is not None:
            self._check(header)
        if len(data) < begin + COUNTS.size:
            raise _damaged(f"it ends after {len(data)} bytes, within its header")
        rows, checksum = COUNTS.unpack_from(data, begin)
        begin += COUNTS.size
        expected = rows * self._like.row_bytes
        if len(data) - begin != expected:
            raise _damaged(
                f"{len(data) - begin} bytes follow the header, but {rows} rows of {self._like.row_bytes} bytes are "
                f"{expected}"
            )
        # A copy for torch: tensors can be written to, bytes cannot.
        payload = bytearray(memoryview(data)[begin:])
        if zlib.crc32(payload) != checksum:
            raise _damaged("its checksum does not match its contents")
        return State(self._tensors(payload, rows, device), self.encoder)

    @property
    def header(self) -> bytes:
        """The bytes that `to_bytes` puts before the tensors; a store can keep them once for many states."""
        return self._header_bytes

    def check_header(self, header: bytes) -> None:
        """Compare a stored header with this model's.

        Raises:
            InputError: if it is damaged, or of another model, another version of the library or another window.
        """
        if header != self._header_bytes:
            self._check(self._parsed(header))

    def _read_header(self, data: bytes) -> tuple[dict[str, Any] | None, int]:
        """Return the header, None if it equals ours, and the offset of its end."""
        begin = len(MAGIC) + LENGTHS.size
        if data[: len(MAGIC)] != MAGIC[: len(data)]:
            raise _damaged(f"it does not begin with {MAGIC!r}")
        if len(data) < begin:
            raise _damaged(f"it ends after {len(data)} bytes, within its header")
        (size,) = LENGTHS.unpack_from(data, len(MAGIC))
        end = begin + size
        found = data[begin:end]
        if found == self._header_bytes:
            return None, end
        if len(found) < size:
            raise _damaged(f"it ends after {len(data)} bytes, within its header")
        return self._parsed(found), end

    def _parsed(self, found: bytes) -> dict[str, Any]:
        try:
            header = json.loads(found)
        except (ValueError, RecursionError) as error:
            raise _damaged(f"its header cannot be read: {error}") from error
        if not isinstance(header, dict) or header.keys() != self._header.keys():
            raise _damaged("its header lacks fields, or has unknown ones")
        return header

    def _check(self, header: dict[str, Any]) -> None:
        """Raise InputError if a header differs from ours, with the first difference."""
        names = {"version": "library version", "weights": "encoder weights", "byte_order": "byte order"}
        for field, ours in self._header.items():
            found = header[field]
            if found != ours:
                if isinstance(found, dict) and isinstance(ours, dict):
                    found, ours = (
                        {k: v for k, v in x.items() if (k, v) not in y.items()}
                        for x, y in ((found, ours), (ours, found))
                    )
                raise InputError(
                    f"the state was made with {names.get(field, field)} {found}, but the model has {ours}; make it "
                    "again from the user's events"
                )

    def _tensors(self, payload: bytearray, rows: int, device: torch.device | str | None) -> dict[str, Tensor]:
        flat = torch.frombuffer(payload, dtype=torch.uint8) if payload else torch.empty(0, dtype=torch.uint8)
        tensors, begin = {}, 0
        for name, like in self._like.tensors.items():
            end = begin + rows * _row_size(like)
            # Copied for alignment, and because each tensor would otherwise keep the bytes of all alive.
            x = flat[begin:end].clone().view(like.dtype).view(rows, *like.shape[1:])
            tensors[name] = x.to(device or like.device)
            begin = end
        return tensors


def _damaged(reason: str) -> InputError:
    return InputError(f"data is no whole state: {reason}; make it again from the user's events")


def _row_size(x: Tensor) -> int:
    return x.shape[1:].numel() * x.element_size()


def _entry(x: Tensor) -> list[Any]:
    """Return dtype and shape of a row, as in the header."""
    return [str(x.dtype).removeprefix("torch."), list(x.shape[1:])]


def _layout(state: State) -> dict[str, Any]:
    return {name: [*_entry(x), str(x.device)] for name, x in state.tensors.items()}


def as_bytes(x: Tensor) -> Tensor:
    """Return the bytes of a tensor as (N,) uint8 on the CPU, which numpy can read for every dtype, also bfloat16."""
    return byte_view(x.cpu())


def byte_view(x: Tensor) -> Tensor:
    """Return the bytes of a tensor as (N,) uint8 on its device; a view if it is contiguous."""
    return x.detach().contiguous().view(-1).view(torch.uint8)


def weights_digest(module: nn.Module) -> str:
    """Return a digest of all weights of a module."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
        # Not `tobytes`, which would copy a table of gigabytes.
        digest.update(as_bytes(weight).numpy().data)
    return digest.hexdigest()[:16]
