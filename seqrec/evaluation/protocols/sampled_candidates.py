"""Candidates drawn for each user. B users, T targets, D width, C candidates, N draws, V = num_items + 1."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.errors import InputError
from seqrec.evaluation.protocols.candidates import Candidates, TrainingCounts
from seqrec.evaluation.protocols.draws import draw_by_weight, first_distinct, hashed_uniforms
from seqrec.evaluation.target_ranks import Targets, candidate_ranks
from seqrec.training.negatives import draw_unseen
from seqrec.types import SeenItems, SequenceBatch, TargetRanks


class SampledCandidates(Candidates):
    """Items drawn for each user.

    Draws depend on the seed and the user's id alone: every model, batch size and number of ranks meets the same
    candidates. They are none of the user's targets, and no seen items where these are filtered. Sampled metrics can
    order models otherwise than full ones (Krichene & Rendle 2020, On Sampled Metrics for Item Recommendation).

    Args:
        count: Candidates C a user, beside its targets.
        replacement: Whether an item may be drawn twice; it then counts twice.
        seed: Seed of the draws.

    Raises:
        InputError: `count` below 1.
    """

    seed: int

    def __init__(self, count: int, *, replacement: bool, seed: int) -> None:
        if count < 1:
            raise InputError(f"count={count} must be at least 1")
        self.count = count
        self.replacement = replacement
        self.seed = seed

    @abstractmethod
    def draw(
        self, uniforms: Tensor, avoid: SeenItems, num_items: int, item_counts: TrainingCounts | None
    ) -> Tensor:
        """(B, N) items for uniform numbers (B, N), with replacement, none of them in `avoid`."""

    @abstractmethod
    def num_drawable(self, avoid: SeenItems, num_items: int, item_counts: TrainingCounts | None) -> Tensor:
        """(B,) different items that `draw` can give each user."""

    def drawn(
        self,
        targets: Targets,
        batch: SequenceBatch,
        num_items: int,
        *,
        filter_seen: bool,
        item_counts: TrainingCounts | None = None,
    ) -> Tensor:
        """(B, C) candidates of each user.

        Args:
            targets: The targets of the users.
            batch: The users, and what they have seen.
            num_items: Items 1..num_items.
            filter_seen: See `ranks`.
            item_counts: See `ranks`.

        Raises:
            InputError: a user has too few candidates.
        """
        rows, items = [targets.rows], [targets.item_ids]
        if filter_seen:
            rows, items = [batch.seen_events.rows, *rows], [batch.seen_events.item_ids.long(), *items]
        avoid = SeenItems.from_events(torch.cat(rows), torch.cat(items), len(batch))

        def draw(number: int) -> Tensor:
            return self.draw(
                hashed_uniforms(batch.user_ids, number, self.seed), avoid, num_items, item_counts
            )

        if self.replacement:
            return draw(self.count)
        fewest = int(self.num_drawable(avoid, num_items, item_counts).min())
        if fewest < self.count:
            raise InputError(
                f"count={self.count} different candidates, but a user has only {fewest} that it has not seen: lower "
                "count, or set replacement: true"
            )
        return first_distinct(draw, self.count)

    def ranks(
        self,
        scorer: Scorer,
        states: Tensor,
        targets: Targets,
        batch: SequenceBatch,
        *,
        filter_seen: bool,
        item_counts: TrainingCounts | None = None,
    ) -> TargetRanks:
        """See `Candidates.ranks`."""
        counts = self.known_counts(item_counts, scorer) if self.needs_item_counts else None
        drawn = self.drawn(targets, batch, scorer.num_items, filter_seen=filter_seen, item_counts=counts)
        return candidate_ranks(scorer, states, targets, drawn)


class UniformCandidates(SampledCandidates):
    """Items drawn uniformly.

    Args:
        count: Candidates C a user, beside its targets.
        trained_only: Whether only items that training holds are drawn.
        replacement: Whether an item may be drawn twice; it then counts twice.
        seed: Seed of the draws.

    Raises:
        InputError: `count` below 1.
    """

    def __init__(
        self, count: int = 100, *, trained_only: bool = False, replacement: bool = True, seed: int = 0
    ) -> None:
        super().__init__(count, replacement=replacement, seed=seed)
        self.trained_only = trained_only
        self.needs_item_counts = trained_only

    @property
    def id(self) -> str:
        """`uniform100`, with `-trained` and `-distinct` where that is so."""
        trained, distinct = "-trained" * self.trained_only, "-distinct" * (not self.replacement)
        return f"uniform{self.count}{trained}{distinct}"

    def draw(
        self, uniforms: Tensor, avoid: SeenItems, num_items: int, item_counts: TrainingCounts | None
    ) -> Tensor:
        """See `SampledCandidates.draw`."""
        if self.trained_only:
            assert item_counts is not None
            return draw_by_weight(uniforms, avoid, item_counts.trained.long())
        rows = torch.arange(len(uniforms), device=uniforms.device)
        return draw_unseen(uniforms, rows, avoid, num_items)

    def num_drawable(self, avoid: SeenItems, num_items: int, item_counts: TrainingCounts | None) -> Tensor:
        """See `SampledCandidates.num_drawable`."""
        if self.trained_only:
            assert item_counts is not None
            return _trained_outside(avoid, item_counts)
        return num_items - avoid.counts


class PopularityCandidates(SampledCandidates):
    """Items drawn in proportion to how often they occur in training; those that it does not hold are never drawn.

    As BERT4Rec is evaluated (Sun et al. 2019, section 4.2): there 100 different ones that the user has not seen.

    Args:
        count: Candidates C a user, beside its targets.
        replacement: Whether an item may be drawn twice; it then counts twice.
        seed: Seed of the draws.

    Raises:
        InputError: `count` below 1.
    """

    needs_item_counts = True

    def __init__(self, count: int = 100, *, replacement: bool = False, seed: int = 0) -> None:
        super().__init__(count, replacement=replacement, seed=seed)

    @property
    def id(self) -> str:
        """`popularity100-distinct`, or `popularity100` with replacement."""
        return f"popularity{self.count}{'' if self.replacement else '-distinct'}"

    def draw(
        self, uniforms: Tensor, avoid: SeenItems, num_items: int, item_counts: TrainingCounts | None
    ) -> Tensor:
        """See `SampledCandidates.draw`."""
        assert item_counts is not None
        return draw_by_weight(uniforms, avoid, item_counts.counts)

    def num_drawable(self, avoid: SeenItems, num_items: int, item_counts: TrainingCounts | None) -> Tensor:
        """See `SampledCandidates.num_drawable`."""
        assert item_counts is not None
        return _trained_outside(avoid, item_counts)


def _trained_outside(avoid: SeenItems, item_counts: TrainingCounts) -> Tensor:
    """(B,) items of training that each user does not avoid."""
    taken = torch.cat([avoid.offsets.new_zeros(1), item_counts.trained[avoid.item_ids].cumsum(0)])
    return item_counts.trained.sum() - (taken[avoid.offsets[1:]] - taken[avoid.offsets[:-1]])
