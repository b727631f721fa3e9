"""Ops as `torch.export` records them: plain torch, for any number of events."""

from __future__ import annotations

import pytest
import torch
from problems import GATED_DELTA, OPS

from seqrec.ops.export import is_exporting


class Call(torch.nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, given):
        return self.op(given, "auto")


@pytest.mark.parametrize("op", [*OPS, GATED_DELTA], ids=lambda op: op.name)
@torch.no_grad()
def test_an_exported_op_is_plain_torch_and_the_reference_at_any_length(op):
    example = op.make(flags=True)
    length = torch.export.Dim("length")
    of_events = (*op.events, "valid", "start")
    free = {key: {1: length} if key in of_events else None for key in example}
    program = torch.export.export(Call(op), (example,), dynamic_shapes=(free,), strict=False)
    assert not [node for node in program.graph.nodes if "seqrec" in str(node.target)]
    assert not [node for node in program.graph.nodes if "autocast" in str(node.target)]
    for events in (2, 23):
        inputs = op.make(L=events, seed=1, flags=True)
        for got, x in zip(program.module()(inputs), op(inputs, "reference"), strict=True):
            torch.testing.assert_close(got, x, rtol=1e-5, atol=1e-5)


def test_compiling_is_not_exporting():
    compiled = torch.compile(lambda x: x + is_exporting(), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)).item() == 0
