"""`check_encoder` passes encoders that keep the contract, and names what others break."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conformance import ARCHITECTURES, Case
from torch import Tensor, nn

from seqrec.encoders import SequenceEncoder
from seqrec.encoders.contract import check_encoder
from seqrec.types import History


@pytest.mark.parametrize("case", ARCHITECTURES, ids=str)
def test_registered_encoders_keep_the_contract(case: Case):
    encoder = case.build(dropout=0.5).train()
    check_encoder(encoder)
    assert encoder.training


class RunningMean(SequenceEncoder):
    """A projection of the mean of all events so far; what a test changes about it is `spoil`."""

    def __init__(self, spoil: Callable[[Tensor], Tensor] = lambda states: states) -> None:
        super().__init__(4, num_layers=1, dropout=0.0, layer_norm=False)
        self.projection = nn.Linear(4, 4)
        self.unused = None
        self.spoil = spoil

    def forward(self, x: Tensor, history: History) -> Tensor:
        counts = torch.arange(1, x.shape[1] + 1).unsqueeze(-1)
        return self.spoil(self.projection(x.cumsum(1) / counts))


def test_an_encoder_that_cannot_be_streamed_passes_without_streams():
    check_encoder(RunningMean())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda states: states[..., :2], "shape of the states"),
        (lambda states: states.double(), "dtype of the states"),
        (lambda states: states / 0, "not finite"),
        (lambda states: states + torch.rand(()), "computed again"),
        (lambda states: states - states.mean(1, keepdim=True), "sees the future event"),
        (lambda states: states + states.mean(0), "another row of the batch"),
        (lambda states: states.detach() + 0 * states, "the gradient of .* is zero"),
    ],
)
def test_what_breaks_the_contract_is_named(spoil: Callable[[Tensor], Tensor], message: str):
    with pytest.raises(AssertionError, match=message):
        check_encoder(RunningMean(spoil))


def test_a_parameter_that_is_not_used_is_named():
    encoder = RunningMean()
    encoder.extra = nn.Parameter(torch.ones(2))
    with pytest.raises(AssertionError, match="extra gets no gradient"):
        check_encoder(encoder)
