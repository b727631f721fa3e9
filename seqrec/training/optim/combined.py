"""One optimiser for a model with dense parameters and tables with row-sparse gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from seqrec.errors import InputError
from seqrec.training.optim.row_optimizer import RowOptimizer, loss_of


class CombinedOptimizer(Optimizer):
    """Optimisers of different parameters, at least one, that step, save and load together.

    `param_groups` holds the parts' own groups, and all parts use `state` as their one mapping. Schedulers, gradient
    scalers and Lightning therefore reach every part.
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
