"""Draws from a fixed distribution over many items in constant time each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqrec.types import TensorRecord


@dataclass(frozen=True)
class AliasTable(TensorRecord):
    """Alias method (Walker 1977): V columns of equal mass, each split between its own item and one other.

    A draw reads two random places of memory. A binary search in the cumulative sums reads 25 at 30 M items, and was
    15 to 30 times slower there on CPU. One float64 chooses column and part. `torch.multinomial` draws from at most
    2^24 items.

    Attributes:
        thresholds: (V,) float64 in [0, 1], share of the column that belongs to its own item.
        aliases: (V,) int32, item that the rest of the column belongs to.
    """

    thresholds: Tensor
    aliases: Tensor

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Draw item ids (0..V - 1) of `shape`, int64, on the table's device, independent, with replacement."""
        parts = torch.rand(shape, dtype=torch.float64, device=self.thresholds.device).flatten()
        parts.mul_(len(self.thresholds))
        columns = parts.long()
        # A part is at least 0, so an item without weight, which has threshold 0, is never drawn.
        own = parts.sub_(columns) < self.thresholds.index_select(0, columns)
        # index_select is several times faster than indexing here.
        return torch.where(own, columns, self.aliases.index_select(0, columns)).view(shape)


def alias_table(weights: Tensor) -> AliasTable:
    """Build the table of a distribution proportional to weights (V,), float64, at least 0 and not all 0, without a
    loop.

    Vose's (1991) construction visits light items (below the mean). The present heavy item fills up their columns
    until it is light itself; then the next heavy one fills it up. The heavy item that fills a column follows from the
    cumulative deficits of the light and the cumulative excesses of the heavy items, as in the sweep of
    Hubschle-Schneider & Sanders (2022, Parallel Weighted Random Sampling, section 4.2). The remainder that rounding
    leaves goes to one heavy item: a few millionths of its probability at 30 M items, of others a billionth. V is below
    2^31.
    """
    # Relative to the largest first, because the sum of the smallest floats has no reciprocal.
    relative = weights / weights.max()
    shares = relative * (len(weights) / relative.sum())
    is_heavy = shares >= 1
    light, heavy = (~is_heavy).nonzero().squeeze(1), is_heavy.nonzero().squeeze(1)
    thresholds, aliases = shares.clamp(max=1), torch.arange(len(weights), device=weights.device).int()
    # Rounding can leave no light item or, if all weights are equal, no heavy one.
    if len(heavy) == 0 or len(light) == 0:
        return AliasTable(thresholds, aliases)
    excesses = (shares[heavy] - 1).cumsum(0)
    # Entry k is the total deficit of the first k light items.
    deficits = torch.cat([shares.new_zeros(1), (1 - shares[light]).cumsum(0)])
    filler = torch.searchsorted(excesses, deficits[:-1], right=True).clamp_(max=len(heavy) - 1)
    aliases[light] = heavy[filler].int()
    # A heavy item gives as long as it has something left, so it gives the last light item too much.
    filled = torch.searchsorted(deficits[:-1], excesses)
    thresholds[heavy] = 1 - (deficits[filled] - excesses).clamp_(0, 1)
    aliases[heavy[:-1]] = heavy[1:].int()
    return AliasTable(thresholds, aliases)
