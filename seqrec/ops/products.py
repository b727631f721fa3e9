"""Matrix products of the compiled library, for the backends "cpp" of ops that contain linear maps.

B batch, L events, K and N numbers of an event, which may be parts of wider tensors (`by_event`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.compiled_library import call, distance

# Rows that a thread takes at a time.
ROWS = 64
# Columns of weights are padded with zeros to a multiple of this, whole vectors of any build.
PADDING = 16
# Parts into which the sum over rows is split. They do not depend on the number of threads, and neither does the sum.
PARTS = 16
# Minimum rows of a part.
PART_ROWS = 256


def multiply(x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Write `x @ weight` to `out` (B, L, N), or add it, and return `out`.

    Args:
        x: (B, L, K).
        weight: (K, N) of any layout.
        out: As x, but for its last axis.
        add: Whether to add.
    """
    steps, columns = weight.shape
    weight = F.pad(weight, (0, -columns % PADDING)).contiguous()
    sizes = {"rows": x.shape[:-1].numel(), "columns": columns, "steps": steps, "row_piece": ROWS, "step_piece": steps}
    distances = {"c_row": distance(out), "c_part": 0, "a_row": distance(x), "a_step": 1, "b_row": weight.shape[1]}
    call("products", {**sizes, **distances, "add": add, "padded": 1}, {"A": x, "B": weight, "C": out})
    return out


def weight_gradient(dout: Tensor, x: Tensor) -> Tensor:
    """Return `dout.T @ x` (N, K), the gradient of the weight of a linear map, for x (B, L, K) and dout (B, L, N)."""
    rows, columns, width = x.shape[:-1].numel(), dout.shape[-1], x.shape[-1]
    if width < PADDING <= columns:  # the vectors would not be full
        return weight_gradient(x, dout).t()
    piece = max(PART_ROWS, -(-rows // PARTS))
    parts = torch.empty(-(-rows // piece), columns, width)
    sizes = {"rows": columns, "columns": width, "steps": rows, "row_piece": columns, "step_piece": piece}
    distances = {"c_row": width, "c_part": columns * width, "a_row": 1, "a_step": distance(dout), "b_row": distance(x)}
    call("products", {**sizes, **distances, "add": 0, "padded": 0}, {"A": dout, "B": x, "C": parts})
    return parts.sum(0)
