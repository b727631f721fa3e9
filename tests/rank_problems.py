"""Users, targets and candidates for tests of ranks, and what their ranks must be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seqrec.evaluation.target_ranks import Targets
from seqrec.types import HeldOutItems, History, RaggedItems, SequenceBatch, TargetRanks


@dataclass(frozen=True)
class Problem:
    """B users with histories and targets, states (B, D) and item vectors (V, D)."""

    states: Tensor
    vectors: Tensor
    histories: list[list[int]]
    held_out: list[list[int]]

    @property
    def targets(self) -> Targets:
        items = [item for items in self.held_out for item in items]
        rows = [row for row, items in enumerate(self.held_out) for _ in items]
        return Targets(torch.tensor(rows), torch.tensor(items))

    @property
    def batch(self) -> SequenceBatch:
        """As the loader makes it; user ids are 1, 2, ..."""
        rows = [torch.tensor(history) for history in self.histories]
        lengths = torch.tensor([len(history) for history in self.histories])
        item_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        held_out = RaggedItems.from_rows([torch.tensor(items) for items in self.held_out])
        return SequenceBatch(
            History(item_ids, lengths),
            None,
            torch.arange(len(rows)) + 1,
            RaggedItems.from_rows(rows),
            held_out=HeldOutItems(held_out.item_ids, held_out.offsets, held_out.item_ids * 7),
        )

    def scores(self) -> np.ndarray:
        """(B, V) float64."""
        with np.errstate(invalid="ignore"):
            return self.states.double().numpy() @ self.vectors.double().numpy().T


def small_integers(generator: torch.Generator, *shape: int) -> Tensor:
    """Floats whose products and sums are exact, so that ties are, too."""
    return torch.randint(-2, 3, shape, generator=generator).float()


def random_problem(seed: int, num_users: int, num_items: int, most_targets: int, width: int = 3) -> Problem:
    """Histories with repeats; some targets were seen before."""
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    histories = [rng.integers(1, num_items + 1, rng.integers(1, 12)).tolist() for _ in range(num_users)]
    counts = rng.integers(1, min(most_targets, num_items) + 1, num_users)
    held_out = [(rng.permutation(num_items)[:count] + 1).tolist() for count in counts]
    return Problem(
        small_integers(generator, num_users, width),
        small_integers(generator, num_items + 1, width),
        histories,
        held_out,
    )


def ranks_by_numpy(
    scores: np.ndarray, held_out: list[list[int]], candidates: list[list[int]]
) -> tuple[list[int], list[int]]:
    """Better and tied of each target of each user.

    Args:
        scores: (B, V).
        held_out: Targets of each user.
        candidates: Of each user, repeats allowed; the user's targets are added once, wherever they stand.
    """
    better, tied = [], []
    for row, targets in enumerate(held_out):
        listed = [item for item in candidates[row] if item not in targets] + targets
        for target in targets:
            others = scores[row, [item for item in listed if item != target]]
            better.append(int((~(others <= scores[row, target])).sum()))
            tied.append(int((others == scores[row, target]).sum()))
    return better, tied


def as_lists(ranks: TargetRanks) -> tuple[list[int], list[int]]:
    assert ranks.better.dtype == ranks.tied.dtype == torch.int64
    return ranks.better.tolist(), ranks.tied.tolist()
