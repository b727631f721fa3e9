"""The ways in which registered encoders may compute, each of which must keep the contract."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqrec.encoders import ENCODERS, SequenceEncoder
from seqrec.encoders.contract import LENGTH, random_events
from seqrec.encoders.layers import MIXERS
from seqrec.ops.backends import Backends
from seqrec.ops.gated_delta import GATED_DELTA_BACKENDS
from seqrec.ops.selective_scan import SCAN_BACKENDS
from seqrec.ops.ssd import SSD_BACKENDS
from seqrec.types import History

B, L, D = 3, LENGTH, 16
# Of attention that sees only the newest events: shorter than the histories.
WINDOW = 4
# Of sessions: histories have several. Times between events are below 1000.
SESSION_EVENTS, SESSION_GAP = 3, 600


# The scan inside each mixer. One that is not here is tested with the backend that it takes by itself.
SCANS: dict[str, Backends] = {
    "mamba": SCAN_BACKENDS,
    "mamba2": SSD_BACKENDS,
    "gated_deltanet": GATED_DELTA_BACKENDS,
}


@dataclass(frozen=True)
class Case:
    """One of the ways in which an encoder may compute.

    Attributes:
        name: Of the encoder.
        mixer: None where the encoder takes none.
        scan: Backend of the mixer's scan; None is "auto".
        rotary: Whether its attention has rotary positions; False where it has no attention.
        gaps: Whether its mixers read gaps, with tables that matter; False where none can.
        options: Further arguments of the encoder and their values.
        sessions: What begins a session, an argument of the encoder; None where it has no sessions.
    """

    name: str
    mixer: str | None = None
    scan: str | None = None
    rotary: bool = False
    gaps: bool = False
    options: tuple[tuple[str, object], ...] = ()
    sessions: str | None = None

    def __str__(self) -> str:
        default = self.mixer == default_mixer(self.name)
        rotary = "rotary" if self.rotary else None
        sessions = self.sessions if self.sessions == "session_gap" else None
        values = [name if value is True else value for name, value in self.options]
        gaps = "gaps" if self.gaps else None
        parts = (self.name, None if default else self.mixer, rotary, gaps, *values, sessions, self.scan)
        return "-".join(str(part) for part in parts if part)

    @property
    def bidirectional(self) -> bool:
        """Whether states depend on newer events too."""
        return ENCODERS[self.name].bidirectional

    @property
    def backends(self) -> Backends | None:
        """Those of the mixer's scan; None where there is none or it is not known."""
        return None if self.mixer is None else SCANS.get(self.mixer)

    def build(self, *, dropout: float = 0.0, layer_norm: bool = True) -> SequenceEncoder:
        torch.manual_seed(0)
        encoder = ENCODERS[self.name](D, num_layers=2, dropout=dropout, layer_norm=layer_norm, **self.choices)
        if self.gaps:
            encoder.read_gaps(1)
            for name, weight in encoder.named_parameters():
                if name.endswith("gaps.weight"):
                    torch.nn.init.normal_(weight, std=0.3)
        return encoder

    @property
    def choices(self) -> dict[str, object]:
        """The arguments that make this way of computing."""
        mixer = {} if self.mixer is None else {"mixer": self.mixer}
        window = {"window": WINDOW} if "window" in arguments_of(self.name) else {}
        cut = {"session_events": SESSION_EVENTS, "session_gap": SESSION_GAP}
        sessions = {name: value for name, value in cut.items() if name == self.sessions}
        return {**mixer, **window, **sessions, **({"rotary": True} if self.rotary else {}), **dict(self.options)}


def arguments_of(name: str) -> Mapping[str, inspect.Parameter]:
    """The arguments of an encoder."""
    return inspect.signature(ENCODERS[name]).parameters


def default_mixer(name: str) -> str | None:
    """The mixer that an encoder has unless told otherwise; None where it takes none."""
    parameter = arguments_of(name).get("mixer")
    return None if parameter is None else parameter.default


def reads_gaps(name: str) -> bool:
    """Whether an encoder has mixers that can read gaps."""
    return not ENCODERS[name].bidirectional and any(
        hasattr(part, "read_gaps") for part in list(ENCODERS[name](D).modules())[1:]
    )


def takes_rotary(name: str) -> bool:
    """Whether an encoder has attention that can have rotary positions."""
    return "rotary" in arguments_of(name)


# Each encoder by itself and, where it takes a mixer, with Mamba and Mamba-2, and MambaRec with every other mixer; then
# those that can be rotary, those that cut sessions by time, and, of those that can read gaps, one for each mixer and a
# mixture.
ALIKE = ("RecMamba", "RecMamba-mamba2", "MoEMaTrRec-mamba2", "Samba-mamba2")
PLAIN = [
    Case(name, mixer, sessions="session_events" if "session_events" in arguments_of(name) else None)
    for name in ENCODERS
    for mixer in (MIXERS if default_mixer(name) else [None])
    if mixer in (None, "mamba", "mamba2") or name == "MambaRec"
]
# SASRec with other blocks: each option alone or with what makes it a published one.
BLOCKS = [
    Case("SASRec", options=options)
    for options in (
        (("norm", "post"), ("feed_forward", "gelu")),
        (("norm", "queries"), ("num_heads", 2)),
        (("feed_forward", "swiglu"), ("gated", True)),
        (("norm", "queries"), ("feed_forward", "swiglu"), ("gated", True), ("rotary", True)),
    )
]
ARCHITECTURES = [
    *PLAIN,
    *BLOCKS,
    *(Case(name, default_mixer(name), rotary=True) for name in ENCODERS if takes_rotary(name)),
    *(replace(case, sessions="session_gap") for case in PLAIN if case.sessions),
    *(replace(case, gaps=True) for case in PLAIN if reads_gaps(case.name) and str(case) not in ALIKE),
]
CAUSAL = [case for case in ARCHITECTURES if not case.bidirectional]
# The same, with each backend of the mixer's scan too, unless it runs in both directions.
CASES = [
    replace(case, scan=scan)
    for case in ARCHITECTURES
    for scan in (None, *(case.backends.names if case in PLAIN and case in CAUSAL and case.backends else ()))
]


def events(lengths: list[int]) -> tuple[Tensor, History]:
    """Random embedded events of width D."""
    return random_events(lengths, D)
