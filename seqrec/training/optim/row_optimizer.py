"""Optimisers that read and write only the rows of a table that have a gradient.

V rows of the table, D width, U distinct rows of the gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from seqrec.errors import InputError
from seqrec.ops.row_gradients import sum_rows
from seqrec.training.optim.stochastic_rounding import round_stochastically, step_generator

TABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


class RowOptimizer(Optimizer):
    """Updates of the rows that a sparse gradient has; memory and time of a step are those of U x D numbers.

    Rows without a gradient keep their weights and their state, and so does the padding row, for which embeddings
    make no gradient. Updates are computed, and state is kept, in float32, or in the table's type where that is wider.

    Args:
        tables: (V, D) parameters, in float32, bfloat16 or float64.
        options: Options of the rule, `lr` among them.
        stochastic_rounding: Whether new rows of bfloat16 tables are rounded stochastically; else to nearest.
        seed: Seed of that rounding, which depends on it, on the step and on the table's place alone: the same on
            all ranks and after resuming.

    Raises:
        InputError: a table of another type.
    """

    # Names of a table's state beside its step.
    state_names: tuple[str, ...]

    def __init__(
        self, tables: Iterable[Tensor], options: dict[str, Any], *, stochastic_rounding: bool, seed: int
    ) -> None:
        super().__init__(tables, {**options, "stochastic_rounding": stochastic_rounding, "seed": seed})
        for table in self._tables():
            if table.dtype not in TABLE_DTYPES:
                raise InputError(
                    f"a table of {table.dtype} cannot have row-sparse updates: take float32 or bfloat16"
                )

    @abstractmethod
    def _new_state(self, table: Tensor, dtype: torch.dtype, group: dict[str, Any]) -> dict[str, Tensor]:
        """State of a table (V, D) before its first step, by `state_names`."""

    @abstractmethod
    def _changes(
        self, row_ids: Tensor, gradients: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        """What is added to rows `row_ids` (U,) with `gradients` (U, D); updates their state. Returns (U, D)."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the rows that have a gradient.

        Args:
            closure: Computes loss and gradients anew, and returns the loss.

        Returns:
            The closure's loss; None without one.

        Raises:
            InputError: a dense gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        part = 0
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._step_table(table, group, part)
                part += 1
        return loss

    def _step_table(self, table: Tensor, group: dict[str, Any], part: int) -> None:
        if table.grad is None or not table.grad.is_sparse:
            raise InputError(
                "a table with row-sparse updates has a dense gradient, as objectives make that read all items: "
                "take a sampled objective (SampledSoftmax, GBCE, BCE), or set item_table.sparse: false"
            )
        row_ids, gradients = sum_rows(table.grad)
        state = self.state[table]
        if not state:
            state["step"] = 0
            state.update(self._new_state(table, gradients.dtype, group))
        state["step"] += 1
        changes = self._changes(row_ids, gradients, state, group)
        if table.dtype == changes.dtype:
            table.index_add_(0, row_ids, changes)
            return
        rows = changes.add_(table.index_select(0, row_ids))
        if group["stochastic_rounding"]:
            generator = step_generator(group["seed"], state["step"], part, table.device)
            table.index_copy_(0, row_ids, round_stochastically(rows, generator))
        else:
            table.index_copy_(0, row_ids, rows.to(table.dtype))

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state; as with torch's optimisers, tensors on the right device are taken without copying.

        Unlike torch's, numbers keep their type: the state of bfloat16 tables is float32.

        Raises:
            InputError: the state of another rule.
        """
        super().load_state_dict({**state_dict, "state": {}})
        saved_ids = [saved for group in state_dict["param_groups"] for saved in group["params"]]
        for table, saved in zip(self._tables(), saved_ids, strict=True):
            state = state_dict["state"].get(saved)
            if state is None:
                continue
            if set(state) != {"step", *self.state_names}:
                raise InputError(
                    f"the checkpoint's table optimiser keeps {', '.join(sorted(state))}, not "
                    f"{', '.join(sorted(('step', *self.state_names)))}: go on with the `table` optimiser that it has"
                )
            self.state[table] = {
                name: value.to(table.device) if isinstance(value, Tensor) else value
                for name, value in state.items()
            }

    def _tables(self) -> list[Tensor]:
        return [table for group in self.param_groups for table in group["params"]]
