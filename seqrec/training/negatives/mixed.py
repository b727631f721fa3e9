"""Negatives from several samplers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.training.negatives.negative_sampler import Negatives, NegativeSampler
from seqrec.types import SeenItems


class MixedNegatives(NegativeSampler):
    """All draws of several samplers, as draws of one mixture.

    Sampler k gives N_k of the N draws. The mixture is q(item) = sum of N_k / N * q_k(item), whichever sampler drew
    the item. This is the balance heuristic of Veach & Guibas (1995), with which sums weighted by 1 / q stay
    unbiased. In-batch and uniform draws together are the mixed negative sampling of Yang et al. (2020).

    Args:
        samplers: Two or more, with the same `exclude_seen` and `shared`.

    Raises:
        InputError: if there are fewer than two samplers, or they do not agree.

    Example:
        >>> from seqrec import InBatchNegatives, MixedNegatives, UniformNegatives
        >>> uniform = UniformNegatives(128, exclude_seen=False, shared=True)
        >>> MixedNegatives([InBatchNegatives(exclude_seen=False), uniform]).num_draws(num_positions=200)
        328
    """

    def __init__(self, samplers: list[NegativeSampler]) -> None:
        if len(samplers) < 2:
            raise InputError(f"a mixture of {len(samplers)} samplers; give two or more, or the sampler itself")
        for name in ("exclude_seen", "shared"):
            values = [getattr(sampler, name) for sampler in samplers]
            if len(set(values)) > 1:
                pairs = ", ".join(f"{type(s).__name__}: {v}" for s, v in zip(samplers, values, strict=True))
                raise InputError(f"samplers of a mixture must agree in {name}, but have {pairs}")
        self.samplers = samplers
        self.exclude_seen = samplers[0].exclude_seen
        self.shared = samplers[0].shared

    @property
    def needs_item_counts(self) -> bool:  # type: ignore[override]  # follows from the samplers
        """Whether one of the samplers needs item counts."""
        return any(sampler.needs_item_counts for sampler in self.samplers)

    @property
    def takes_padding(self) -> bool:  # type: ignore[override]  # follows from the samplers
        """Whether all samplers do."""
        return all(sampler.takes_padding for sampler in self.samplers)

    def use_item_counts(self, counts: Tensor) -> None:
        """Set how often each item occurs in training; see `NegativeSampler.use_item_counts`."""
        for sampler in self.samplers:
            sampler.use_item_counts(counts)

    def num_draws(self, num_positions: int) -> int:
        """Return the draws N for M positions."""
        return sum(sampler.num_draws(num_positions) for sampler in self.samplers)

    def sample(self, rows: Tensor, targets: Tensor, seen: SeenItems | None, num_items: int) -> Negatives:
        """Draw negatives for the batch's positions; see `NegativeSampler.sample`."""
        parts = [sampler.sample(rows, targets, seen, num_items) for sampler in self.samplers]
        item_ids = torch.cat([part.item_ids for part in parts], dim=-1)
        log_probabilities = self.log_probabilities(item_ids, rows, seen, num_items)
        if all(part.excluded is None for part in parts):
            return Negatives(item_ids, log_probabilities)
        # A sampler that never draws seen items excludes no draw.
        excluded = [
            torch.zeros_like(part.item_ids, dtype=torch.bool) if part.excluded is None else part.excluded
            for part in parts
        ]
        return Negatives(item_ids, log_probabilities, torch.cat(excluded, dim=-1))

    def log_probabilities(self, item_ids: Tensor, rows: Tensor, seen: SeenItems | None, num_items: int) -> Tensor:
        """Return the log-probabilities of items; see `NegativeSampler.log_probabilities`."""
        draws = [sampler.num_draws(len(rows)) for sampler in self.samplers]
        parts = [
            sampler.log_probabilities(item_ids, rows, seen, num_items) + math.log(size / sum(draws))
            for sampler, size in zip(self.samplers, draws, strict=True)
        ]
        return torch.stack(parts).logsumexp(0)
