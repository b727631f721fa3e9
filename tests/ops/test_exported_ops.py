"""Ops as `torch.export` records them: plain torch, for any number of events."""

from __future__ import annotations

import conv_problems
import pytest
import scan_problems
import ssd_problems
import torch

from seqrec.ops import causal_conv1d, selective_scan, ssd_scan
from seqrec.ops.export import is_exporting

OPS = {
    "scan": (selective_scan, scan_problems.make_inputs, {"delta_softplus": True}),
    "ssd": (ssd_scan, ssd_problems.make_inputs, {"delta_softplus": True}),
    "convolution": (causal_conv1d, conv_problems.make_inputs, {"silu": True}),
}
OF_EVENTS = ("u", "x", "delta", "B", "C", "z", "valid", "start")


class Op(torch.nn.Module):
    def __init__(self, op, settings):
        super().__init__()
        self.op, self.settings = op, settings

    def forward(self, given):
        return self.op(**given, **self.settings, return_last_state=True)


@pytest.mark.parametrize("name", OPS)
@torch.no_grad()
def test_an_exported_op_is_plain_torch_and_the_reference_at_any_length(name):
    op, make, settings = OPS[name]
    example = make(flags=True)
    length = torch.export.Dim("length")
    free = {key: {1: length} if key in OF_EVENTS else None for key in example}
    program = torch.export.export(Op(op, settings), (example,), dynamic_shapes=(free,), strict=False)
    assert not [node for node in program.graph.nodes if "seqrec" in str(node.target)]
    assert not [node for node in program.graph.nodes if "autocast" in str(node.target)]
    for events in (2, 23):
        inputs = make(L=events, seed=1, flags=True)
        expected = op(**inputs, **settings, return_last_state=True, backend="reference")
        for got, x in zip(program.module()(inputs), expected, strict=True):
            torch.testing.assert_close(got, x, rtol=1e-5, atol=1e-5)


def test_compiling_is_not_exporting():
    compiled = torch.compile(lambda x: x + is_exporting(), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)).item() == 0
