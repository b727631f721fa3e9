"""Matrix products of the compiled library that write to parts of wider tensors, for backends "cpp" of whole layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.compiled_library import call, distance

# Columns of weights are padded with zeros to a multiple of this, whole vectors of any build.
PADDING = 16


def multiply(x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Write `x @ weight` to `out`, or add it, and return `out`.

    Args:
        x: (B, L, K), laid out as of `by_event`.
        weight: (K, N) of any layout.
        out: (B, L, N), laid out as of `by_event`.
        add: Whether to add.
    """
    steps, columns = weight.shape
    weight = F.pad(weight, (0, -columns % PADDING)).contiguous()
    sizes = {"rows": x.shape[:2].numel(), "columns": columns, "steps": steps, "add": add}
    rows = {"c_row": distance(out), "a_row": distance(x), "b_row": weight.shape[1]}
    call("product", sizes | rows, {"A": x, "B": weight, "C": out})
    return out
