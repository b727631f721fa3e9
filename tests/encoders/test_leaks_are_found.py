"""The conformance checks fail when an encoder's guard against the future or against padding is taken away."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conformance import CAUSAL, Case
from torch import Tensor

from seqrec import ops
from seqrec.encoders.contract import check_causality, check_padding
from seqrec.encoders.layers import TokenGate
from seqrec.ops import attention, causal_conv1d

# Sessions of different lengths are no rows of whole mixers.
MIXED = [case for case in CAUSAL if case.mixer and case.sessions != "session_gap"]
every_mamba = pytest.mark.parametrize("case", MIXED, ids=str)
# The scan of each mixer, and the module that calls it.
SCANS = {"mamba": "selective_scan", "mamba2": "ssd_scan", "gated_deltanet": "gated_delta_rule"}
MODULES = {name: f"seqrec.ops.mamba_mixer.{name}" for name in ("mamba", "mamba2")}
MODULES |= {"gated_deltanet": "seqrec.encoders.layers.gated_deltanet"}
sees_the_future = pytest.raises(AssertionError, match="sees the future event")


@pytest.mark.parametrize("name", ["SASRec", "MoEMaTrRec"])
def test_attention_without_the_causal_rule_is_found(name: str, monkeypatch: pytest.MonkeyPatch):
    def bidirectional(*heads: Tensor, causal: bool, dropout: float, window: None, lengths: None) -> Tensor:
        return attention(*heads, causal=False)

    monkeypatch.setattr("seqrec.encoders.layers.attention.attention", bidirectional)
    with sees_the_future:
        check_causality(Case(name).build())
    with pytest.raises(AssertionError, match="padding changes the states"):
        check_padding(Case(name).build())


def test_a_gate_that_pools_over_the_sequence_is_found(monkeypatch: pytest.MonkeyPatch):
    def pooled(self: TokenGate, x: Tensor) -> Tensor:
        return self.projection(x.mean(1, keepdim=True)).softmax(-1).expand(-1, x.shape[1], -1)

    monkeypatch.setattr(TokenGate, "forward", pooled)
    with sees_the_future:
        check_causality(Case("MoEMaTrRec").build())


def replace_part(case: Case, monkeypatch: pytest.MonkeyPatch, name: str, part: Callable[..., Tensor]) -> None:
    """Make a case's mixer compute by its parts, one of which is replaced."""
    monkeypatch.setenv(f"SEQREC_{case.mixer.upper()}_MIXER_BACKEND", "reference")
    monkeypatch.setattr(f"{MODULES[case.mixer]}.{name}", part)


@every_mamba
def test_a_convolution_centred_on_the_event_is_found(case: Case, monkeypatch: pytest.MonkeyPatch):
    def centred(x: Tensor, *arguments: Tensor, **rest: bool) -> Tensor:
        return causal_conv1d(F.pad(x, (0, 0, 0, 1)), *arguments, **rest)[:, 1:]

    replace_part(case, monkeypatch, "causal_conv1d", centred)
    with sees_the_future:
        check_causality(case.build())


@every_mamba
def test_a_scan_from_newest_to_oldest_is_found(case: Case, monkeypatch: pytest.MonkeyPatch):
    name = SCANS[case.mixer]
    scan = getattr(ops, name)

    def backwards(*operands: Tensor, **rest) -> Tensor:
        if "z" in rest:
            rest["z"] = rest["z"].flip(1)
        # Those of events have three axes or more.
        return scan(*(x.flip(1) if x.dim() > 2 else x for x in operands), **rest).flip(1)

    replace_part(case, monkeypatch, name, backwards)
    with sees_the_future:
        check_causality(case.build())


def test_a_faint_leak_from_the_next_event_is_found(monkeypatch: pytest.MonkeyPatch):
    encoder = Case("GRU4Rec").build()
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda x, history: forward(x + 1e-3 * x.roll(-1, 1), history))
    with sees_the_future:
        check_causality(encoder)


def test_an_encoder_without_memory_is_found(monkeypatch: pytest.MonkeyPatch):
    encoder = Case("GRU4Rec").build()
    monkeypatch.setattr(encoder, "forward", lambda x, history: x)
    with pytest.raises(AssertionError, match="state of event 1 does not depend on event 0"):
        check_causality(encoder)


def test_states_that_depend_on_what_stands_in_the_padding_are_found(monkeypatch: pytest.MonkeyPatch):
    encoder = Case("GRU4Rec").build()
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda x, history: forward(x, history) + x.mean(1, keepdim=True))
    with pytest.raises(AssertionError, match="padding changes the states"):
        check_padding(encoder)


def test_states_that_are_not_numbers_at_padding_are_found(monkeypatch: pytest.MonkeyPatch):
    encoder = Case("GRU4Rec").build()
    forward = encoder.forward

    def poisoned(x: Tensor, history) -> Tensor:
        return forward(x, history).masked_fill(~history.valid.unsqueeze(-1), torch.nan)

    monkeypatch.setattr(encoder, "forward", poisoned)
    with pytest.raises(AssertionError, match="not finite"):
        check_padding(encoder)
