"""Users with targets and scores that tie, and the slow, obvious metrics of them: every order of the tied."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from seqrec.types import JudgedTargets, TargetRanks


@dataclass(frozen=True)
class User:
    """Scores of all candidates, and which of them are the targets."""

    scores: tuple[int, ...]
    targets: tuple[int, ...]


@st.composite
def user(draw: st.DrawFn, max_targets: int) -> User:
    scores = draw(st.lists(st.integers(0, 2), min_size=1, max_size=6))
    # At most 5 at one score, or the orders are too many.
    scores = [score + 3 * (scores[:place].count(score) >= 5) for place, score in enumerate(scores)]
    places = st.lists(st.integers(0, len(scores) - 1), min_size=1, max_size=max_targets, unique=True)
    return User(tuple(scores), tuple(draw(places)))


def users(max_targets: int = 4) -> st.SearchStrategy[list[User]]:
    return st.lists(user(max_targets), min_size=1, max_size=4)


def judged_of(users: Sequence[User]) -> JudgedTargets:
    """What a protocol makes of them: all candidates but the target itself are compared with it."""
    pairs = [(row, target) for row, user in enumerate(users) for target in user.targets]
    better = [sum(s > users[row].scores[target] for s in users[row].scores) for row, target in pairs]
    tied = [users[row].scores.count(users[row].scores[target]) - 1 for row, target in pairs]
    return judged(better, tied, [row for row, _ in pairs], [target + 1 for _, target in pairs])


def judged(
    better: Sequence[int],
    tied: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
    item_ids: Sequence[int] | None = None,
) -> JudgedTargets:
    """Targets by their ranks; one a user unless `rows` says otherwise."""
    rows = range(len(better)) if rows is None else rows
    num_users = len(set(rows))
    return JudgedTargets(
        user_ids=torch.arange(1, num_users + 1),
        history_lengths=torch.full((num_users,), 3),
        rows=torch.tensor(list(rows)),
        item_ids=torch.tensor(list(item_ids or range(1, len(better) + 1))),
        ranks=TargetRanks(torch.tensor(list(better)), torch.tensor(list(tied or [0] * len(better)))),
        repeated=torch.zeros(len(better), dtype=torch.bool),
    )


def orders(user: User) -> Iterator[list[int]]:
    """The targets' ranks, from 1, in each equally likely order of the candidates."""
    groups = [
        [place for place, each in enumerate(user.scores) if each == score]
        for score in sorted(set(user.scores), reverse=True)
    ]
    for order in itertools.product(*(itertools.permutations(group) for group in groups)):
        ranking = list(itertools.chain(*order))
        yield [ranking.index(target) + 1 for target in user.targets]


def mean_over_orders(user: User, metric: Callable[[list[int]], float]) -> float:
    values = [metric(ranks) for ranks in orders(user)]
    return math.fsum(values) / len(values)


def gain(ranks: Sequence[int], k: int) -> float:
    return sum(1 / math.log2(1 + rank) for rank in ranks if rank <= k)


NAIVE: dict[str, Callable[[list[int], int], float]] = {
    "HR": lambda ranks, k: float(min(ranks) <= k),
    "MRR": lambda ranks, k: 1 / min(ranks) if min(ranks) <= k else 0.0,
    "Recall": lambda ranks, k: sum(rank <= k for rank in ranks) / len(ranks),
    "Precision": lambda ranks, k: sum(rank <= k for rank in ranks) / k,
    "achievable": lambda ranks, k: gain(ranks, k) / gain(range(1, min(len(ranks), k) + 1), k),
    "cutoff": lambda ranks, k: gain(ranks, k) / gain(range(1, k + 1), k),
    "none": gain,
}
