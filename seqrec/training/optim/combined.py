"""Several optimisers as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from seqrec.errors import InputError
from seqrec.training.optim.row_optimizer import RowOptimizer


class CombinedOptimizer(Optimizer):
    """Optimisers of different parameters that step, save and load together.

    `param_groups` holds the parts' own groups and `state` is one mapping that all parts use, so that what drives or
    moves an optimiser (schedulers, gradient scalers, Lightning) reaches every part.

    Args:
        parts: The optimisers, whose parameters differ; at least one.

    Attributes:
        parts: The same.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__(self._groups_of_parts(), {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parts.

        Args:
            closure: Computes loss and gradients anew, and returns the loss; called once.

        Returns:
            The closure's loss; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take a group of a part.

        Raises:
            TypeError: a group of none, which no part would update.
        """
        if not any(param_group is group for group in self._groups_of_parts()):
            raise TypeError(
                "add the group to one of `parts`, then build a CombinedOptimizer of the parts anew: "
                "it cannot tell whose the group is"
            )
        super().add_param_group(param_group)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give each part what was saved of it.

        Raises:
            InputError: the state of an optimiser with another number of groups.
        """
        saved = state_dict["param_groups"]
        if len(saved) != len(self.param_groups):
            raise InputError(
                f"the checkpoint's optimiser has {len(saved)} groups of parameters, this model's has "
                f"{len(self.param_groups)}: go on with the optimizer and the item_table.sparse that the checkpoint has"
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
        """Let `param_groups` and `state` be those of the parts, whose loading makes new ones."""
        self.param_groups = self._groups_of_parts()
        state = {key: value for part in self.parts for key, value in part.state.items()}
        self.state.clear()
        self.state.update(state)
        for part in self.parts:
            part.state = self.state


def describe_optimizer(optimizer: Optimizer) -> str:
    """Names of an optimiser's parts, such as `fused Adam, LazyAdamOptimizer of tables`."""
    parts = optimizer.parts if isinstance(optimizer, CombinedOptimizer) else [optimizer]
    names = []
    for part in parts:
        fused = "fused " if part.defaults.get("fused") else ""
        tables = " of tables" if isinstance(part, RowOptimizer) else ""
        names.append(f"{fused}{type(part).__name__}{tables}")
    return ", ".join(names)
