"""States and gradients of RecTools' layers, in float64; `rectools_layers.json` has what they return.

    peers/bin/python tests/peers/rectools_layers.py tests/peers/rectools_layers.json

`peers` is the environment of `requirements.txt`. Imports nothing of seqrec.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

B, L, D, HEADS, LAYERS, HIDDEN = 2, 4, 4, 2, 2, 2
# Of all norms but that of HSTU's mixed values, which are divided by another number of events there and here.
EPS = 1e-5


def numbers(*shape: int, key: int) -> Tensor:
    """Numbers between -1 and 1 that both sides make by themselves."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (1.7 * count + 0.9 * count.sqrt() + key).cos().view(shape)


def fill(weights: dict[str, Tensor]) -> None:
    """Set weights by their place in the order of names."""
    with torch.no_grad():
        for key, (name, weight) in enumerate(sorted(weights.items())):
            one = name.endswith("weight") and weight.dim() == 1
            weight.copy_(numbers(*weight.shape, key=key) + one)


def layers() -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    """RecTools' stacks of blocks without dropout, with what their `forward` takes besides."""
    from rectools.models.nn.transformers.hstu import STULayers
    from rectools.models.nn.transformers.ligr import LiGRLayers
    from rectools.models.nn.transformers.net_blocks import PreLNTransformerLayers
    from rectools.models.nn.transformers.sasrec import SASRecTransformerLayers

    sizes = {"n_blocks": LAYERS, "n_factors": D, "n_heads": HEADS, "dropout_rate": 0.0}
    relative = {"relative_time_attention": False, "relative_pos_attention": True, "session_max_len": L}
    widths = {"linear_hidden_dim": D // HEADS, "attention_dim": D // HEADS}
    sasrec = SASRecTransformerLayers(**sizes)
    sasrec.last_layernorm.eps = EPS
    hstu = STULayers(**sizes, **relative, **widths, epsilon=EPS)
    for block in hstu.stu_blocks:
        block.norm_attn_output.eps = 0.0
    return {
        "SASRec": (sasrec, {}),
        "LiGR": (LiGRLayers(**sizes, ff_factors_multiplier=HIDDEN), {}),
        "PreLN": (PreLNTransformerLayers(**sizes, ff_factors_multiplier=HIDDEN), {}),
        "HSTU": (hstu, {"batch": {"x": torch.zeros(B, L)}}),
    }


def outcome(name: str) -> dict[str, list[float]]:
    """States of a stack, followed by a norm where it has none, and the gradients of x and of all weights."""
    stack, others = layers()[name]
    stack.double().eval()
    weights = dict(stack.named_parameters())
    fill(weights)
    x = numbers(B, L, D, key=100).requires_grad_()
    # torch's polarity of masks in nn.MultiheadAttention: True is hidden.
    hidden = torch.ones(L, L).triu(1).bool()
    states = stack(seqs=x.clone(), timeline_mask=torch.ones(B, L, 1), attn_mask=hidden, key_padding_mask=None, **others)
    if name != "SASRec":
        states = nn.functional.layer_norm(states, (D,), eps=EPS)
    (states * numbers(B, L, D, key=200)).sum().backward()
    found = {"states": states, "x": x.grad, **{each: weight.grad for each, weight in weights.items()}}
    return {each: [round(value, 10) for value in values.flatten().tolist()] for each, values in found.items()}


def main() -> None:
    """Write the file that is named."""
    import rectools

    found = {"RecTools": rectools.__version__, **{name: outcome(name) for name in layers()}}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    Path(sys.argv[1]).write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
