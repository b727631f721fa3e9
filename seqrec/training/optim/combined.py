"""One optimiser for a model with dense parameters and tables with row-sparse gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from seqrec.errors import InputError
from seqrec.training.optim.lazy_adam import LazyAdam
from seqrec.training.optim.optimizer_factory import TableOptimizer
from seqrec.training.optim.row_optimizer import RowOptimizer, loss_of

# Devices on which torch's fused Adam was measured or is recommended by torch.
FUSED_DEVICES = ("cpu", "cuda")


class CombinedOptimizer(Optimizer):
    """Optimisers of different parameters that step, save and load together.

    `param_groups` holds the parts' own groups, and all parts use `state` as their one mapping. Schedulers, gradient
    scalers and Lightning therefore reach every part.

    Args:
        parts: The optimisers, at least one; no two share a parameter.

    Attributes:
        parts: The same.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__(self._groups_of_parts(), {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parts; return the loss of `closure`, which computes it and the gradients anew."""
        loss = loss_of(closure)
        for part in self.parts:
            part.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group that one of the parts has.

        Raises:
            TypeError: if no part has the group, so that no part would update it.
        """
        if not any(param_group is group for group in self._groups_of_parts()):
            raise TypeError(
                "add the group to one of `parts`, then build a new CombinedOptimizer of the parts: "
                "it cannot know which part should update the group"
            )
        super().add_param_group(param_group)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give each part its saved state.

        Raises:
            InputError: if the saved optimiser has another number of groups.
        """
        saved = state_dict["param_groups"]
        if len(saved) != len(self.param_groups):
            raise InputError(
                f"the checkpoint's optimiser has {len(saved)} groups of parameters, this model's has "
                f"{len(self.param_groups)}: resume with the checkpoint's optimizer and item_table.sparse"
            )
        for part in self.parts:
            own, saved = saved[: len(part.param_groups)], saved[len(part.param_groups) :]
            ids = {parameter for group in own for parameter in group["params"]}
            state = {key: value for key, value in state_dict["state"].items() if key in ids}
            part.load_state_dict({"state": state, "param_groups": own})
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}

    def _groups_of_parts(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def _share(self) -> None:
        """Point `param_groups` and `state` at the parts' again; loading replaces the parts' own."""
        self.param_groups = self._groups_of_parts()
        state = {key: value for part in self.parts for key, value in part.state.items()}
        self.state.clear()
        self.state.update(state)
        for part in self.parts:
            part.state = self.state


def describe_optimizer(optimizer: Optimizer) -> str:
    """Return the names of an optimiser's parts, such as `fused Adam, LazyAdamOptimizer of tables`."""
    parts = optimizer.parts if isinstance(optimizer, CombinedOptimizer) else [optimizer]
    names = []
    for part in parts:
        fused = "fused " if part.defaults.get("fused") else ""
        tables = " of tables" if isinstance(part, RowOptimizer) else ""
        names.append(f"{fused}{type(part).__name__}{tables}")
    return ", ".join(names)


def sparse_tables(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable weights of embeddings with row-sparse gradients, each once, in the order of the modules."""
    found: dict[int, nn.Parameter] = {
        id(module.weight): cast(nn.Parameter, module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.sparse and module.weight.requires_grad
    }
    return list(found.values())


def uses_fused(parameters: Sequence[Tensor], asked: bool | None) -> Literal[True] | None:
    """Return torch's `fused` argument: True for the fused kernel, None to let torch choose among the others.

    Args:
        parameters: The parameters to optimise, on their devices.
        asked: The user's choice; None leaves it to this function.

    Raises:
        InputError: if the kernel is asked for and missing.
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
    # With False torch would not use its multi-tensor kernels either.
    return True if has_kernel and asked is not False else None


def build_optimizer(
    model: nn.Module,
    dense: Callable[[list[tuple[str, nn.Parameter]]], Optimizer],
    table: TableOptimizer | None,
    *,
    lr: float,
    betas: tuple[float, float],
) -> Optimizer:
    """Return one optimiser of all parameters of `model` that require a gradient.

    Args:
        model: The model.
        dense: Builds the optimiser of the named dense parameters.
        table: Settings for tables with row-sparse gradients; None is `LazyAdam`.
        lr: Step size of the dense part.
        betas: Decays of the dense part's running means.

    Raises:
        InputError: if `table` is given and the model has no such table.
    """
    tables = sparse_tables(model)
    if table is not None and not tables:
        raise InputError(
            f"optimizer.table={type(table).__name__} is for tables with row-sparse gradients, and this model has "
            "none: set item_table.sparse: true, or leave optimizer.table out"
        )
    sparse_ids = {id(weight) for weight in tables}
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in sparse_ids]
    parts = [dense(named)] if named or not tables else []
    # A fused optimiser offers to unscale fp16 gradients itself, and Lightning then refuses to clip them. Without the
    # offer the scaler unscales before the step, and clipping comes in between.
    if parts and getattr(parts[0], "_step_supports_amp_scaling", False):
        parts[0]._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    if tables:
        parts.append((table or LazyAdam()).build(tables, lr=lr, betas=betas))
    return parts[0] if len(parts) == 1 else CombinedOptimizer(parts)
