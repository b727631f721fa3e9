"""Our encoders with the blocks of RecTools' transformers have its states and gradients."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compare_metrics import peers_python
from rectools_layers import HEADS, HIDDEN, LAYERS, B, D, L, fill, numbers
from torch import Tensor

from seqrec.encoders import HSTU, SASRec, SequenceEncoder
from seqrec.encoders.layers.residual import Residual
from seqrec.types import History

RECORDED = Path(__file__).with_name("rectools_layers.json")
SIZES = {"num_layers": LAYERS, "num_heads": HEADS, "dropout": 0.0}
ENCODERS: dict[str, Callable[[], SequenceEncoder]] = {
    "SASRec": lambda: SASRec(D, **SIZES, norm="queries"),
    "LiGR": lambda: SASRec(D, **SIZES, d_feedforward=HIDDEN * D, feed_forward="swiglu", gated=True),
    "PreLN": lambda: SASRec(D, **SIZES, d_feedforward=HIDDEN * D, feed_forward="gelu"),
    "HSTU": lambda: HSTU(D, **SIZES, num_distances=L),
}
NORMS = {"SASRec": ("q_layer_norm", "ff_layer_norm"), "LiGR": ("layer_norm_1", "layer_norm_2")}


def attention_parts(name: str, branches: list[Residual]) -> dict[str, Tensor]:
    """RecTools' names of a transformer block's parameters, and ours or parts of them."""
    attention, feed_forward = (branch.layer for branch in branches)
    norms = NORMS.get(name, NORMS["LiGR"])
    found = {
        "multi_head_attn.in_proj_weight": attention.in_projection.weight,
        "multi_head_attn.in_proj_bias": attention.in_projection.bias,
    }
    parts = {"multi_head_attn.out_proj": attention.out_projection}
    parts |= {norm: branch.norm for norm, branch in zip(norms, branches, strict=True)}
    if name == "LiGR":
        parts |= {f"gating_linear_{number}": branch.gate for number, branch in enumerate(branches, 1)}
        both = feed_forward.layers[0].weight.view(2, -1, D)
        found |= {"feed_forward.ff_linear_1.weight": both[0], "feed_forward.ff_linear_3.weight": both[1]}
        found |= {"feed_forward.ff_linear_2.weight": feed_forward.layers[3].weight}
    else:
        parts |= {
            "feed_forward.ff_linear_1": feed_forward.layers[0],
            "feed_forward.ff_linear_2": feed_forward.layers[3],
        }
    return found | {f"{part}.{kind}": weight for part, own in parts.items() for kind, weight in own.named_parameters()}


def hstu_parts(branch: Residual) -> dict[str, Tensor]:
    """The same of a block of HSTU, but for the relative positions. RecTools' first product has no bias."""
    layer = branch.layer
    parts = {"output_mlp": layer.out_projection, "norm_input": branch.norm, "norm_attn_output": layer.norm}
    found = {f"{part}.{kind}": weight for part, own in parts.items() for kind, weight in own.named_parameters()}
    return {**found, "uvqk_proj": layer.in_projection.weight.T}


def built(name: str) -> tuple[SequenceEncoder, dict[str, Tensor]]:
    """An encoder in float64 with the same weights, and these by RecTools' names."""
    encoder = ENCODERS[name]().double().eval()
    blocks, stack = list(encoder.stack.blocks), "stu_blocks" if name == "HSTU" else "transformer_blocks"
    parts = [hstu_parts(block[0]) if name == "HSTU" else attention_parts(name, list(block)) for block in blocks]
    weights = {f"{stack}.{number}.{each}": weight for number, own in enumerate(parts) for each, weight in own.items()}
    if name == "SASRec":
        weights |= {f"last_layernorm.{kind}": weight for kind, weight in encoder.stack.norm.named_parameters()}
    theirs = {f"{stack}.{number}.rel_attn.pos_weights": torch.zeros(2 * L - 1).double() for number in range(LAYERS)}
    fill(weights | theirs if name == "HSTU" else weights)
    with torch.no_grad():
        for block, positions in zip(blocks if name == "HSTU" else [], theirs.values(), strict=name == "HSTU"):
            layer = block[0].layer
            layer.in_projection.bias.zero_()
            # They count from the oldest distance on, and have numbers of newer events, which nothing sees.
            layer.distances.copy_(positions[:L].flip(0))
            layer.norm.eps = 0.0
    return encoder, weights


@pytest.mark.parametrize("name", list(ENCODERS))
def test_states_and_gradients_are_those_of_rectools(name: str):
    expected = json.loads(RECORDED.read_text(encoding="utf-8"))[name]
    encoder, weights = built(name)
    x = numbers(B, L, D, key=100).requires_grad_()
    states = encoder(x, History(torch.ones(B, L).long(), torch.full((B,), L)))
    (states * numbers(B, L, D, key=200)).sum().backward()
    tables = [block[0].layer.distances.grad for block in encoder.stack.blocks] if name == "HSTU" else []
    with torch.no_grad():
        # The parts of parameters that have their names show gradients from here on.
        for parameter in encoder.parameters():
            parameter.copy_(parameter.grad)
    found = {"states": states, "x": x.grad, **weights}
    for number, gradient in enumerate(tables):
        newer = gradient.new_zeros(L - 1)
        found[f"stu_blocks.{number}.rel_attn.pos_weights"] = torch.cat([gradient.flip(0), newer])
    assert set(found) == set(expected)
    for each, values in found.items():
        given = torch.tensor(expected[each], dtype=torch.float64).view(values.shape)
        # They keep the numbers of positions in float32.
        torch.testing.assert_close(values, given, rtol=1e-6, atol=1e-6, msg=each)


def test_the_file_is_what_rectools_returns(tmp_path: Path):
    if (python := peers_python()) is None:
        pytest.skip("RecTools is not here; tests/peers/requirements.txt, then set SEQREC_PEERS_PYTHON")
    script, written = Path(__file__).with_name("rectools_layers.py"), tmp_path / "layers.json"
    subprocess.run([python, str(script), str(written)], check=True)
    again, recorded = (json.loads(path.read_text(encoding="utf-8")) for path in (written, RECORDED))
    for name in ENCODERS:
        for each, values in recorded[name].items():
            assert again[name][each] == pytest.approx(values, rel=1e-8, abs=1e-9), (name, each)
