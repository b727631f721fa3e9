"""Optimisers that read and write only the rows of a table that have a gradient, and stochastic rounding.

V rows of the table, D width, U distinct rows of the gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from seqrec.errors import InputError
from seqrec.ops.row_gradients import sum_rows, sums_at_each_row

# A float32 is a bfloat16 followed by 16 further bits of the fraction.
DROPPED_BITS = 16
# Most numbers of a gradient whose repeated rows are written as often as it has them, for which a GPU needs memory of
# some ten gradients.
MOST_WRITTEN = 1 << 25
TABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


class RowOptimizer(Optimizer):
    """Base of optimisers that update the rows of a sparse gradient, with time and memory for U x D numbers a step.

    Rows without a gradient keep their weights and their state. So does the padding row, for which embeddings
    make no gradient or one of 0. Updates are computed, and state is kept, in float32, or in the table's type if that is
    wider.

    Args:
        tables: (V, D) parameters, in float32, bfloat16 or float64.
        options: Options of the rule, `lr` among them.
        stochastic_rounding: Whether new rows of bfloat16 tables are rounded stochastically; else to nearest.
        seed: Seed of that rounding. Rounding depends only on the seed, the step and the table's place, and is
            therefore the same in all processes and after resuming.

    Raises:
        InputError: if a table has another type.
    """

    # Names of a table's state, without its step.
    state_names: tuple[str, ...]

    def __init__(
        self, tables: Iterable[Tensor], options: dict[str, Any], *, stochastic_rounding: bool, seed: int
    ) -> None:
        super().__init__(tables, {**options, "stochastic_rounding": stochastic_rounding, "seed": seed})
        for table in self._tables():
            if table.dtype not in TABLE_DTYPES:
                raise InputError(f"a table of {table.dtype} cannot have row-sparse updates: use float32 or bfloat16")

    @abstractmethod
    def _new_state(self, table: Tensor, dtype: torch.dtype, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return a table's (V, D) state before its first step, by `state_names`."""

    @abstractmethod
    def _changes(self, row_ids: Tensor, gradients: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Return the change (U, D) of rows `row_ids` (U,) with `gradients` (U, D), and update their state.

        On a GPU, numbers may be repeated, with equal gradients: state is written there, and never added to.
        """

    def new_state(self, table: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the state of one of the tables (V, D) before its first step, by name; each entry has V rows."""
        (group,) = (group for group in self.param_groups if any(each is table for each in group["params"]))
        return self._new_state(table, dtype, group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the rows that have a gradient; return the loss of `closure`, which computes it and gradients anew.

        Raises:
            InputError: if a gradient is dense.
        """
        loss = loss_of(closure)
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
                "a table with row-sparse updates has a dense gradient, which objectives make that read all items: "
                "use a sampled objective (SampledSoftmax, GBCE, BCE), or set item_table.sparse: false"
            )
        written = _writes_repeated(table)
        row_ids, gradients = (sums_at_each_row if written else sum_rows)(table.grad)
        state = self.state[table]
        if not state:
            state["step"] = 0
            state.update(self._new_state(table, gradients.dtype, group))
        state["step"] += 1
        changes = self._changes(row_ids, gradients, state, group)
        if table.dtype == changes.dtype and not written:
            table.index_add_(0, row_ids, changes)
            return
        rows = changes.add_(table.index_select(0, row_ids))
        if written:
            table.index_copy_(0, row_ids, rows)
        elif group["stochastic_rounding"]:
            generator = step_generator(group["seed"], state["step"], part, table.device)
            table.index_copy_(0, row_ids, round_stochastically(rows, generator))
        else:
            table.index_copy_(0, row_ids, rows.to(table.dtype))

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state. As in torch's optimisers, tensors that are on the right device are not copied.

        Unlike in torch's, numbers keep their type: the state of bfloat16 tables is float32.

        Raises:
            InputError: if it is the state of another update rule.
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
                    f"{', '.join(sorted(('step', *self.state_names)))}: resume with the checkpoint's `table` optimiser"
                )
            self.state[table] = {
                name: value.to(table.device) if isinstance(value, Tensor) else value for name, value in state.items()
            }

    def _tables(self) -> list[Tensor]:
        return [table for group in self.param_groups for table in group["params"]]


def _writes_repeated(table: Tensor) -> bool:
    """Return whether rows are written as often as the gradient has them, so that a GPU need not count distinct ones.

    All writes of a row are equal, which stochastic rounding would change.
    """
    assert table.grad is not None
    deterministic = torch.are_deterministic_algorithms_enabled()
    # Sums are made in float64, which other devices lack.
    fits = table.device.type == "cuda" and table.dtype == torch.float32 and not table.grad.is_coalesced()
    return fits and table.grad._values().numel() <= MOST_WRITTEN and not deterministic


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """Call an optimiser's closure with gradients enabled; return its loss, None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def step_generator(seed: int, step: int, part: int, device: torch.device) -> torch.Generator:
    """Return a generator of the random bits of table `part` at one step, independent of torch's global generators.

    Devices of different kinds draw different bits.
    """
    # Mixed, because streams of neighbouring steps and tables must have nothing in common.
    mixed = np.random.SeedSequence((seed, step, part)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed))


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round each float32 to one of its two bfloat16 neighbours, the nearer the likelier; the expectation is `values`.

    With rounding to nearest, a weight never moves if its updates are below half of its last place, which is 2^-9 of
    the weight. With stochastic rounding such updates arrive on average (Gupta et al. 2015, Deep Learning with Limited
    Numerical Precision, section 3). Exact bfloat16 numbers, infinities and NaN are unchanged. Numbers beyond the
    largest bfloat16 are rounded to it or to infinity. The generator draws 16 bits a value.
    """
    # One 64-bit draw gives four times 16 bits, in a sixth of the time of four draws.
    drawn = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device)
    drawn.random_(-(2**63), None, generator=generator)
    noise = drawn.view(torch.int16)[: values.numel()].view(values.shape).to(torch.int32)
    low_bits = (1 << DROPPED_BITS) - 1
    # Read as a number, the bits grow with the magnitude for both signs, so a carry leads to the next one away from 0.
    bits = noise.bitwise_and_(low_bits).add_(values.view(torch.int32)).bitwise_and_(~low_bits)
    return torch.where(values.isfinite(), bits.view(torch.float32), values).to(torch.bfloat16)
