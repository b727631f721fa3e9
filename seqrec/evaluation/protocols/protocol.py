"""Evaluation protocols: one description of how targets are ranked. B users, T targets of all of them, D width."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.data.splits import LeaveOneOut, Split
from seqrec.errors import InputError, check_at_least
from seqrec.evaluation.metrics import NORMALISERS
from seqrec.evaluation.protocols.candidates import Candidates, TrainingCounts, WholeCatalogue
from seqrec.evaluation.protocols.presets import PRESETS
from seqrec.evaluation.protocols.sampled_candidates import UniformCandidates
from seqrec.evaluation.target_ranks import Targets
from seqrec.specs import to_spec
from seqrec.types import ROW_STRIDE, HeldOutItems, JudgedTargets, SequenceBatch, TargetRanks

TIE_RULES = ("mean", "pessimistic", "optimistic")


class Protocol:
    """Everything that affects an evaluation's numbers, except for the model and the log. Immutable and hashable.

    Results of two protocols cannot be compared. Equal protocols have equal ids. The order of events of equal time,
    which the store decides, is only in the description.

    Args:
        candidates: The items that targets are ranked against; None is the whole catalogue.
        filter_seen: Whether items of the user's history are no candidates. Targets always are. Set False if users
            repeat items (music); otherwise repeats can never be counted against a model.
        ties: Rule for candidates with the target's score: "mean" over their orders; "pessimistic" puts them above
            the target, "optimistic" below. Only with "mean" and "pessimistic" do constant scores look bad.
        normaliser: Divisor of the NDCG; see `seqrec.evaluation.metrics.ndcg`.
        split: Rule that holds events out. None is the data module's; any other is refused.
        order: Order of a user's events of equal time, as the event store names it. None is the store's; any other
            is refused.
        request_time: Whether the model reads the time of the target, as that of the request. The model decides.
        targets: Condition that events must meet to be judged (and trained for). None is the data module's; any other
            is refused.

    Raises:
        InputError: if the tie rule or the normaliser is unknown.

    Example:
        >>> from seqrec import Protocol, UniformCandidates
        >>> Protocol().id
        'full-seenout-tiemean-loo'
        >>> Protocol(candidates=UniformCandidates(100), ties="pessimistic").id
        'uniform100-seenout-tiepessimistic-loo-seed0'
    """

    def __init__(
        self,
        *,
        candidates: Candidates | None = None,
        filter_seen: bool = True,
        ties: Literal["mean", "pessimistic", "optimistic"] = "mean",
        normaliser: Literal["achievable", "cutoff", "none"] = "achievable",
        split: Split | None = None,
        order: str | None = None,
        request_time: bool = False,
        targets: str | None = None,
    ) -> None:
        for name, value, known in (("ties", ties, TIE_RULES), ("normaliser", normaliser, NORMALISERS)):
            if value not in known:
                raise InputError(f"{name}={value!r} must be one of {', '.join(known)}")
        self.candidates: Candidates = candidates or WholeCatalogue()
        self.filter_seen = filter_seen
        self.ties = ties
        self.normaliser = normaliser
        self.split = split
        self.order = order
        self.request_time = request_time
        self.targets = targets
        self._frozen = True

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(self, "_frozen", False):
            raise AttributeError(f"{name} of a protocol cannot be set: it is immutable; build a new one")
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Protocol) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(self.id)

    @staticmethod
    def preset(name: str) -> Protocol:
        """Return the protocol of well-known code, such as "sasrec-100"; see `seqrec.evaluation.protocols.presets`.

        Raises:
            InputError: if the name is unknown.
        """
        if name not in PRESETS:
            raise InputError(f"unknown protocol {name!r}; known: {', '.join(sorted(PRESETS))}")
        return Protocol(**PRESETS[name])

    @property
    def id(self) -> str:
        """Short name, such as `full-seenout-tiemean-loo`; printed with each table.

        Candidates, seen items, tie rule and split, then the filter of targets if there is one, the normaliser if it is
        not "achievable", `requesttime` if the model reads the time of the target, and the seed if something is drawn.
        The split is `loo`, the data module's default, for a protocol without a split or data.
        """
        parts = [
            self.candidates.id,
            "seenout" if self.filter_seen else "seenin",
            f"tie{self.ties}",
            (self.split or LeaveOneOut()).id,
        ]
        if self.targets is not None:
            parts.append(f"targets({' '.join(self.targets.split())})")
        if self.normaliser != "achievable":
            parts.append(f"ndcg{self.normaliser}")
        if self.request_time:
            parts.append("requesttime")
        if self.candidates.seed is not None:
            parts.append(f"seed{self.candidates.seed}")
        return "-".join(parts)

    def describe(self) -> dict[str, Any]:
        """Return all settings as plain values, which are saved with each result."""
        return {
            "id": self.id,
            "candidates": _described(self.candidates),
            "filter_seen": self.filter_seen,
            "ties": self.ties,
            "normaliser": self.normaliser,
            "split": _described(self.split or LeaveOneOut()),
            "order": self.order,
            "request_time": self.request_time,
            "targets": self.targets,
        }

    def on(self, split: Split, order: str, *, request_time: bool = False, targets: str | None = None) -> Protocol:
        """Return the same protocol with the data module's split and targets, the store's order of a user's events, and
        with whether the model reads the time of a request.

        Raises:
            InputError: if the protocol has another split, other targets or another order.
        """
        if self.split is not None and self.split.id != split.id:
            spec = _described(self.split)
            words = [f"--data.split {spec.pop('class')}", *(f"--data.split.{k} {v}" for k, v in spec.items())]
            raise InputError(
                f"protocol {self.id} judges by the split {self.split.id}, but the data is divided by {split.id}: "
                f"set {' '.join(words)}, or choose a protocol without a split"
            )
        if self.order is not None and self.order != order:
            raise InputError(
                f"protocol.order={self.order!r}, but the store has {order!r}: leave it out, or prepare the log in "
                "that order"
            )
        if self.targets is not None and self.targets != targets:
            raise InputError(
                f"protocol.targets={self.targets!r}, but data.targets={targets!r}: leave it out, or set "
                "data.targets to the same condition"
            )
        return Protocol(
            candidates=self.candidates,
            filter_seen=self.filter_seen,
            ties=self.ties,
            normaliser=self.normaliser,
            split=split,
            order=order,
            request_time=request_time,
            targets=targets,
        )

    @torch.no_grad()
    def judge(
        self, states: Tensor, batch: SequenceBatch, scorer: Scorer, item_counts: TrainingCounts | None = None
    ) -> JudgedTargets:
        """Rank each user's held-out items.

        Args:
            states: (B, D) states after the newest events.
            batch: Held-out items, and items that the users have seen before.
            scorer: Scores the candidates.
            item_counts: Events of each item; needed if `candidates.needs_item_counts` or `needs_first_times`.

        Raises:
            InputError: if counts are missing, or a user has too few candidates.
        """
        held_out = _held_out(batch)
        targets = Targets(held_out.rows, held_out.item_ids)
        ranks = self.candidates.ranks(
            scorer, states, targets, batch, filter_seen=self.filter_seen, item_counts=item_counts
        )
        return JudgedTargets(
            user_ids=batch.user_ids,
            history_lengths=batch.seen_events.counts,
            rows=targets.rows,
            item_ids=targets.item_ids,
            ranks=ranks if self.ties == "mean" else _untied(ranks, targets.rows, last=self.ties != "optimistic"),
            repeated=_repeated(batch, targets),
            timestamps=held_out.timestamps,
        )


class FullRanking(Protocol):
    """Ranking against the whole catalogue, with the data module's split and the mean over ties.

    Args:
        filter_seen: Whether items of the user's history are no candidates. Targets always are. Set False if users
            repeat items (music); otherwise repeats can never be counted against a model.
        alive_only: Whether items that nobody had met when the user was asked are no candidates; see `WholeCatalogue`.

    Example:
        >>> from seqrec import FullRanking
        >>> FullRanking(filter_seen=False).id
        'full-seenin-tiemean-loo'
    """

    def __init__(self, *, filter_seen: bool = True, alive_only: bool = False) -> None:
        self.alive_only = alive_only
        super().__init__(candidates=WholeCatalogue(alive_only=alive_only), filter_seen=filter_seen)


class SampledRanking(Protocol):
    """Ranking against uniform negatives outside the user's history, as in SASRec and the code that it inspired.

    Args:
        num_negatives: Candidates next to the targets, drawn with replacement.
        seed: Seed of the draws.

    Raises:
        InputError: if there are no candidates.

    Example:
        >>> from seqrec import SampledRanking
        >>> SampledRanking(num_negatives=100, seed=3).id
        'uniform100-seenout-tiemean-loo-seed3'
    """

    def __init__(self, num_negatives: int = 100, *, seed: int = 0) -> None:
        check_at_least(1, num_negatives=num_negatives)
        self.num_negatives = num_negatives
        self.seed = seed
        super().__init__(candidates=UniformCandidates(num_negatives, seed=seed))


def _described(policy: Candidates | Split) -> dict[str, Any]:
    """Return class and arguments as plain values."""
    return {"class": type(policy).__name__, **to_spec(policy)["init_args"]}


def _held_out(batch: SequenceBatch) -> HeldOutItems:
    """Return the batch's held-out items; the last target of each row if it names none."""
    if batch.held_out is not None:
        return batch.held_out
    offsets = torch.arange(len(batch) + 1, device=batch.user_ids.device)
    return HeldOutItems(batch.last_targets, offsets)


def _untied(ranks: TargetRanks, rows: Tensor, *, last: bool) -> TargetRanks:
    """Return ranks without ties: each target after all candidates that it is tied with if `last`, else before them.

    Targets of one user that are tied with each other take successive places, as in one list.
    """
    order = (rows * ROW_STRIDE + ranks.better).argsort(stable=True)
    _, group, sizes = torch.unique_consecutive(
        (rows * ROW_STRIDE + ranks.better)[order], return_inverse=True, return_counts=True
    )
    nth = torch.empty_like(order)
    nth[order] = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[group]
    tied_targets = torch.empty_like(order)
    tied_targets[order] = sizes[group]
    better = ranks.better + nth
    if last:
        better = better + ranks.tied + 1 - tied_targets
    return TargetRanks(better, torch.zeros_like(ranks.tied))


def _repeated(batch: SequenceBatch, targets: Targets) -> Tensor:
    """Return (T,) bool, whether the target is in the user's history."""
    seen = batch.seen_events
    rows = seen.rows
    result = torch.zeros(len(targets.rows), dtype=torch.bool, device=rows.device)
    if len(result) == len(batch):
        result[rows[seen.item_ids == targets.item_ids[rows]]] = True
        return result
    keys, order = (targets.rows * ROW_STRIDE + targets.item_ids).sort()
    events = rows * ROW_STRIDE + seen.item_ids
    places = torch.searchsorted(keys, events).clamp_(max=len(keys) - 1)
    result[order[places[keys[places] == events]]] = True
    return result
