"""Negatives by popularity: drawn in proportion to training events, or the batch's own targets."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.errors import InputError, check_at_least
from seqrec.training.negatives.alias import AliasTable, alias_table
from seqrec.training.negatives.negative_sampler import Negatives, NegativeSampler, seen_draws
from seqrec.types import SeenItems


class PopularityNegatives(NegativeSampler):
    """Items drawn in proportion to count^alpha in training, with replacement, from an alias table in float64.

    Items without a training event are never drawn. With `exclude_seen`, draws that the user has seen do not count,
    and are not drawn again: a user who has seen nearly everything has few negatives or none, and sampling always ends.

    Args:
        num_negatives: Draws N for each position, or for the whole batch with `shared`.
        alpha: Power of the counts: 1 is popularity, 0 is uniform over the items of training, 0.75 is word2vec's
            (Mikolov et al. 2013).
        exclude_seen: Whether items of the user's training history never count as negatives.
        shared: Whether all positions of a batch share their draws, which makes scoring them one matrix product.

    Raises:
        InputError: if there are no draws, or `alpha` is below 0.

    Example:
        >>> import torch
        >>> from seqrec import PopularityNegatives
        >>> sampler = PopularityNegatives(4, alpha=1.0, exclude_seen=False)
        >>> sampler.use_item_counts(torch.tensor([0, 8, 0, 2]))
        >>> positions, targets = torch.zeros(1, dtype=torch.int64), torch.tensor([3])
        >>> drawn = sampler.sample(positions, targets, seen=None, num_items=3)
        >>> drawn.item_ids.shape, bool((drawn.item_ids != 2).all())
        (torch.Size([1, 4]), True)
    """

    needs_item_counts = True
    takes_padding = True

    def __init__(
        self, num_negatives: int = 1, *, alpha: float = 0.75, exclude_seen: bool = True, shared: bool = False
    ) -> None:
        check_at_least(1, num_negatives=num_negatives)
        self.num_negatives = num_negatives
        if not 0 <= alpha < float("inf"):
            raise InputError(f"alpha={alpha} must be at least 0 and finite")
        self.alpha = alpha
        self.exclude_seen = exclude_seen
        self.shared = shared
        # No buffers of a module, because DistributedDataParallel would send them at every step.
        self._table: AliasTable | None = None
        self._log_probabilities: Tensor | None = None

    def use_item_counts(self, counts: Tensor) -> None:
        """Set how often each item occurs in training; see `NegativeSampler.use_item_counts`."""
        check_item_counts(counts)
        # Relative to the largest, because powers of counts can overflow; 0^0 is 0 here.
        weights = (counts.double() / counts.max()).pow(self.alpha).masked_fill_(counts == 0, 0)
        self._table = alias_table(weights)
        self._log_probabilities = weights.div_(weights.sum()).log_()

    def num_draws(self, num_positions: int) -> int:
        """Return the draws N for M positions."""
        return self.num_negatives

    def sample(self, rows: Tensor, targets: Tensor, seen: SeenItems | None, num_items: int) -> Negatives:
        """Draw negatives for the batch's positions; see `NegativeSampler.sample`."""
        shape = (self.num_negatives,) if self.shared else (len(rows), self.num_negatives)
        item_ids = self._on(rows.device, num_items)[0].draw(shape)
        excluded = seen_draws(item_ids, rows, seen) if self.exclude_seen else None
        return Negatives(item_ids, self.log_probabilities(item_ids, rows, seen, num_items), excluded)

    def log_probabilities(self, item_ids: Tensor, rows: Tensor, seen: SeenItems | None, num_items: int) -> Tensor:
        """Return the log-probabilities of items; see `NegativeSampler.log_probabilities`."""
        return self._on(rows.device, num_items)[1][item_ids]

    def _on(self, device: torch.device, num_items: int) -> tuple[AliasTable, Tensor]:
        """Return the tables, which are moved to the positions' device for good."""
        self._log_probabilities = check_known(self, self._log_probabilities, num_items).to(device)
        assert self._table is not None
        self._table = self._table.to(device)
        return self._table, self._log_probabilities


class InBatchNegatives(NegativeSampler):
    """All targets of the batch, shared by all its positions: N = M draws by popularity at no cost.

    Their probability is an item's share of the training events, as if targets came independently; an item without
    training events counts as having one. A position's own target never counts, however often the batch holds it.

    Args:
        exclude_seen: Whether items of the user's training history never count as negatives.

    Example:
        >>> from seqrec import InBatchNegatives, SampledSoftmax
        >>> SampledSoftmax(InBatchNegatives(exclude_seen=False)).needs_item_counts
        True
    """

    needs_item_counts = True
    shared = True

    def __init__(self, *, exclude_seen: bool = True) -> None:
        self.exclude_seen = exclude_seen
        self._log_probabilities: Tensor | None = None

    def use_item_counts(self, counts: Tensor) -> None:
        """Set how often each item occurs in training; see `NegativeSampler.use_item_counts`."""
        check_item_counts(counts)
        self._log_probabilities = counts.clamp(min=1).double().div_(counts.sum()).log_()

    def num_draws(self, num_positions: int) -> int:
        """Return the draws N for M positions."""
        return num_positions

    def sample(self, rows: Tensor, targets: Tensor, seen: SeenItems | None, num_items: int) -> Negatives:
        """Draw negatives for the batch's positions; see `NegativeSampler.sample`."""
        excluded = seen_draws(targets, rows, seen) if self.exclude_seen else None
        return Negatives(targets, self.log_probabilities(targets, rows, seen, num_items), excluded)

    def log_probabilities(self, item_ids: Tensor, rows: Tensor, seen: SeenItems | None, num_items: int) -> Tensor:
        """Return the log-probabilities of items; see `NegativeSampler.log_probabilities`."""
        self._log_probabilities = check_known(self, self._log_probabilities, num_items).to(item_ids.device)
        return self._log_probabilities[item_ids]


def check_item_counts(counts: Tensor) -> None:
    """Refuse counts that no training log can have."""
    fix = "give (num_items + 1,) counts of items in training, as SequenceDataModule.train_item_counts does"
    if counts.dim() != 1 or counts.is_floating_point() or len(counts) < 2:
        raise InputError(f"item counts of shape {tuple(counts.shape)} and type {counts.dtype}; {fix}")
    if int(counts.min()) < 0 or int(counts[0]) != 0:
        raise InputError(f"item counts must be at least 0, and 0 for item 0, which is padding; {fix}")
    if int(counts.max()) == 0:
        raise InputError(f"all {len(counts) - 1} item counts are 0, so no item can be drawn; {fix}")


def check_known(sampler: NegativeSampler, log_probabilities: Tensor | None, num_items: int) -> Tensor:
    """Return a sampler's log-probabilities (V,); refuse None, before `use_item_counts`, or another catalogue's."""
    if log_probabilities is None:
        raise InputError(
            f"{type(sampler).__name__} needs the items' counts in training: fit with a SequenceDataModule, or call "
            "use_item_counts(torch.from_numpy(data.train_item_counts())) before the first step"
        )
    if len(log_probabilities) != num_items + 1:
        raise InputError(
            f"{type(sampler).__name__} has counts of {len(log_probabilities) - 1} items, but the model has "
            f"{num_items}; call use_item_counts with the counts of this catalogue"
        )
    return log_probabilities
