"""A model's optimiser from one for its dense parameters and one for its tables with row-sparse gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from seqrec.errors import InputError
from seqrec.training.optim.base import TableOptimizer
from seqrec.training.optim.combined import CombinedOptimizer
from seqrec.training.optim.tables import LazyAdam

# Where torch's fused Adam was measured or is torch's own recommendation.
FUSED_DEVICES = ("cpu", "cuda")


def sparse_tables(model: nn.Module) -> list[nn.Parameter]:
    """Weights of embeddings with row-sparse gradients that want one, each once, in the order of the modules."""
    found: dict[int, nn.Parameter] = {
        id(module.weight): cast(nn.Parameter, module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.sparse and module.weight.requires_grad
    }
    return list(found.values())


def uses_fused(parameters: Sequence[Tensor], asked: bool | None) -> Literal[True] | None:
    """What to pass to torch as `fused`: True for the kernel, None for torch's choice among the others.

    Args:
        parameters: What is optimised, on the devices where it is.
        asked: The user's choice; None is none.

    Raises:
        InputError: the kernel is asked for and missing.
    """
    devices = sorted({parameter.device.type for parameter in parameters})
    has_kernel = all(device in FUSED_DEVICES for device in devices) and all(
        parameter.is_floating_point() for parameter in parameters
    )
    if asked and not has_kernel:
        raise InputError(
            f"fused=True needs floating-point parameters on {' or '.join(FUSED_DEVICES)}, these are on "
            f"{', '.join(devices)}: leave fused out"
        )
    # With False torch would not take its multi-tensor kernels either.
    return True if has_kernel and asked is not False else None


def build_parts(
    model: nn.Module,
    dense: Callable[[list[tuple[str, nn.Parameter]]], Optimizer],
    table: TableOptimizer | None,
    *,
    lr: float,
    betas: tuple[float, float],
) -> Optimizer:
    """One optimiser of all parameters that want a gradient.

    Args:
        model: Whose parameters they are.
        dense: Builds the optimiser of the named dense parameters.
        table: Settings for tables with row-sparse gradients; None is `LazyAdam`.
        lr: Step size of the dense part.
        betas: Decays of the dense part's running means.

    Raises:
        InputError: `table` is given and the model has no such table.
    """
    tables = sparse_tables(model)
    if table is not None and not tables:
        raise InputError(
            f"optimizer.table={type(table).__name__} is for tables with row-sparse gradients, and this model has "
            "none: set item_table.sparse: true, or leave optimizer.table out"
        )
    sparse_ids = {id(weight) for weight in tables}
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in sparse_ids]
    # A gradient scaler then unscales before the step and not within it, so that gradients can be clipped in between.
    parts = [_unscaled_by_the_scaler(dense(named))] if named or not tables else []
    if tables:
        parts.append((table or LazyAdam()).build(tables, lr=lr, betas=betas))
    return parts[0] if len(parts) == 1 else CombinedOptimizer(parts)


def _unscaled_by_the_scaler(optimizer: Optimizer) -> Optimizer:
    """Withdraw a fused optimiser's offer to unscale gradients itself, because of which Lightning refuses clipping."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer
