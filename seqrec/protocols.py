"""Against which candidates a target is ranked. B users, D width, C candidates."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.negatives import draw_unseen
from seqrec.scoring import Scorer
from seqrec.types import SequenceBatch, TargetRanks


class Protocol(ABC):
    """How targets are ranked. Results of two protocols cannot be compared."""

    @property
    @abstractmethod
    def id(self) -> str:
        """Short name with every setting that moves the numbers; printed with each table."""

    @abstractmethod
    def ranks(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> TargetRanks:
        """Rank each row's last target.

        Args:
            states: (B, D) states behind the newest events.
            batch: Targets and what the users have seen before them.
            scorer: Scores the candidates.
        """


class FullRanking(Protocol):
    """Against the whole catalogue.

    Args:
        filter_seen: Whether items of the user's history are no candidates. The target stays one in any case; set
            False where users repeat items (music), or repeats can never be counted against a model.
    """

    def __init__(self, *, filter_seen: bool = True) -> None:
        self.filter_seen = filter_seen

    @property
    def id(self) -> str:
        """`full-seenout-tiemean-loo` or `full-seenin-tiemean-loo`."""
        return f"full-{'seenout' if self.filter_seen else 'seenin'}-tiemean-loo"

    def ranks(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> TargetRanks:
        """See `Protocol.ranks`."""
        return scorer.target_ranks(states, batch.last_targets, batch.seen if self.filter_seen else None)


class SampledRanking(Protocol):
    """Against uniform negatives outside the user's history, as SASRec and the code it inspired evaluate.

    Draws (with replacement) depend on the seed and the user's id alone: every model, batch size and number of
    ranks meets the same candidates. Sampled metrics can order models otherwise than full ones (Krichene & Rendle
    2020, On Sampled Metrics for Item Recommendation).

    Args:
        num_negatives: Candidates C beside the target.
        seed: Seed of the draws.

    Raises:
        InputError: no candidates.
    """

    def __init__(self, num_negatives: int = 100, *, seed: int = 0) -> None:
        if num_negatives < 1:
            raise InputError(f"num_negatives={num_negatives} must be at least 1")
        self.num_negatives = num_negatives
        self.seed = seed

    @property
    def id(self) -> str:
        """`uniform100-seenout-tiemean-loo-seed0`."""
        return f"uniform{self.num_negatives}-seenout-tiemean-loo-seed{self.seed}"

    def ranks(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> TargetRanks:
        """See `Protocol.ranks`."""
        targets = batch.last_targets
        uniforms = hashed_uniforms(batch.user_ids, self.num_negatives, self.seed)
        rows = torch.arange(len(batch), device=targets.device)
        candidates = draw_unseen(uniforms, rows, batch.seen.with_items(targets), scorer.num_items)
        return scorer.candidate_ranks(states, targets, candidates)


def hashed_uniforms(keys: Tensor, count: int, seed: int) -> Tensor:
    """(B, count) float64 in [0, 1) that depend on (seed, key, column) alone, whatever the device.

    SplitMix64's finaliser (Steele, Lea & Flood 2014) over a counter; int64 arithmetic wraps as uint64's does.

    Args:
        keys: (B,) int64.
        count: Numbers a key.
        seed: Chooses the stream.
    """
    columns = torch.arange(count, device=keys.device)
    # The golden-ratio increment 0x9E3779B97F4A7C15 and the finaliser's two constants, as signed numbers.
    x = (_mix(keys * -7046029254386353131 + seed).unsqueeze(1) + columns) * -7046029254386353131
    return _logical_shift(_mix(x), 11).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _logical_shift(x, 30)) * -4658895280553007687
    x = (x ^ _logical_shift(x, 27)) * -7723592293110705685
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift of int64 copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
