"""How targets are judged, as one description. B users, T targets of all of them, D width."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.data.splits import LeaveOneOut, Split
from seqrec.errors import InputError
from seqrec.evaluation.metrics import NORMALISERS
from seqrec.evaluation.protocols.candidates import Candidates, TrainingCounts, WholeCatalogue
from seqrec.evaluation.protocols.presets import PRESETS
from seqrec.evaluation.protocols.sampled_candidates import UniformCandidates
from seqrec.evaluation.target_ranks import Targets
from seqrec.specs import to_spec
from seqrec.types import (
    ROW_STRIDE,
    HeldOutItems,
    JudgedTargets,
    SequenceBatch,
    TargetRanks,
)

TIE_RULES = ("mean", "pessimistic", "optimistic")


class Protocol:
    """Everything that moves the numbers of an evaluation beside the model and the log. Immutable and hashable.

    Results of two protocols cannot be compared. Equal protocols have equal ids; the order of events of equal time,
    which the store decides, stands in the description alone.

    Args:
        candidates: What targets are ranked against; None is the whole catalogue.
        filter_seen: Whether items of the user's history are no candidates. Targets are in any case; set False
            where users repeat items (music), or repeats can never be counted against a model.
        ties: What becomes of candidates with the target's score: "mean" over their orders; "pessimistic" puts them
            above the target, "optimistic" below. Only with "mean" and "pessimistic" do constant scores look bad.
        normaliser: What the NDCG divides by; see `seqrec.evaluation.metrics.ndcg`.
        split: What is held out. None is the data module's; another one than the data module's is refused.
        order: How a user's events of equal time are ordered, in the words of the event store. None is the
            store's; another one than the store's is refused.

    Raises:
        InputError: an unknown tie rule or normaliser.
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
        self._frozen = True

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(self, "_frozen", False):
            raise AttributeError(f"{name} of a protocol cannot be set: it is immutable; build another one")
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Protocol) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(self.id)

    @staticmethod
    def preset(name: str) -> Protocol:
        """The protocol of well-known code, such as "sasrec-100"; see `seqrec.evaluation.protocols.presets`.

        Raises:
            InputError: an unknown name.
        """
        if name not in PRESETS:
            raise InputError(f"unknown protocol {name!r}; known: {', '.join(sorted(PRESETS))}")
        return Protocol(**PRESETS[name])

    @property
    def id(self) -> str:
        """Short name, such as `full-seenout-tiemean-loo`; printed with each table.

        Candidates, seen items, tie rule and split, then the normaliser if it is not "achievable", then the seed if
        something is drawn. The split of a protocol that names none and has not met its data is `loo`, the
        data module's default.
        """
        parts = [
            self.candidates.id,
            "seenout" if self.filter_seen else "seenin",
            f"tie{self.ties}",
            (self.split or LeaveOneOut()).id,
        ]
        if self.normaliser != "achievable":
            parts.append(f"ndcg{self.normaliser}")
        if self.candidates.seed is not None:
            parts.append(f"seed{self.candidates.seed}")
        return "-".join(parts)

    def describe(self) -> dict[str, Any]:
        """All settings as plain values; saved with each result."""
        return {
            "id": self.id,
            "candidates": _described(self.candidates),
            "filter_seen": self.filter_seen,
            "ties": self.ties,
            "normaliser": self.normaliser,
            "split": _described(self.split or LeaveOneOut()),
            "order": self.order,
        }

    def on(self, split: Split, order: str) -> Protocol:
        """This protocol on data: the same, with the data's split and order.

        Args:
            split: The data module's.
            order: How the store orders a user's events.

        Raises:
            InputError: the protocol says another split or order.
        """
        if self.split is not None and self.split.id != split.id:
            spec = _described(self.split)
            words = [f"--data.split {spec.pop('class')}", *(f"--data.split.{k} {v}" for k, v in spec.items())]
            raise InputError(
                f"protocol {self.id} judges by the split {self.split.id}, but the data is divided by {split.id}: "
                f"set {' '.join(words)}, or take a protocol without a split"
            )
        if self.order is not None and self.order != order:
            raise InputError(
                f"protocol.order={self.order!r}, but the store has {order!r}: leave it out, or prepare the log in "
                "that order"
            )
        return Protocol(
            candidates=self.candidates,
            filter_seen=self.filter_seen,
            ties=self.ties,
            normaliser=self.normaliser,
            split=split,
            order=order,
        )

    @torch.no_grad()
    def judge(
        self,
        states: Tensor,
        batch: SequenceBatch,
        scorer: Scorer,
        item_counts: TrainingCounts | None = None,
    ) -> JudgedTargets:
        """Rank what each user of a batch is judged by.

        Args:
            states: (B, D) states behind the newest events.
            batch: What is held out, and what the users have seen before.
            scorer: Scores the candidates.
            item_counts: How often items occur in training, where `candidates.needs_item_counts`.

        Raises:
            InputError: counts are missing, or a user has too few candidates.
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
            ranks=ranks
            if self.ties == "mean"
            else _untied(ranks, targets.rows, last=self.ties != "optimistic"),
            repeated=_repeated(batch, targets),
            timestamps=held_out.timestamps,
        )


class FullRanking(Protocol):
    """Against the whole catalogue; the data module's split, mean over ties.

    Args:
        filter_seen: Whether items of the user's history are no candidates. Targets are in any case; set False
            where users repeat items (music), or repeats can never be counted against a model.
    """

    def __init__(self, *, filter_seen: bool = True) -> None:
        super().__init__(filter_seen=filter_seen)


class SampledRanking(Protocol):
    """Against uniform negatives outside the user's history, as SASRec and the code it inspired evaluate.

    Args:
        num_negatives: Candidates beside the targets, drawn with replacement.
        seed: Seed of the draws.

    Raises:
        InputError: no candidates.
    """

    def __init__(self, num_negatives: int = 100, *, seed: int = 0) -> None:
        if num_negatives < 1:
            raise InputError(f"num_negatives={num_negatives} must be at least 1")
        super().__init__(candidates=UniformCandidates(num_negatives, seed=seed))

    @property
    def num_negatives(self) -> int:
        """Candidates beside the targets."""
        assert isinstance(self.candidates, UniformCandidates)
        return self.candidates.count

    @property
    def seed(self) -> int | None:
        """Seed of the draws."""
        return self.candidates.seed


def _described(policy: Candidates | Split) -> dict[str, Any]:
    """Class and arguments as plain values."""
    return {"class": type(policy).__name__, **to_spec(policy)["init_args"]}


def _held_out(batch: SequenceBatch) -> HeldOutItems:
    """What the batch says is held out, or the last target of each row."""
    if batch.held_out is not None:
        return batch.held_out
    offsets = torch.arange(len(batch) + 1, device=batch.user_ids.device)
    return HeldOutItems(batch.last_targets, offsets)


def _untied(ranks: TargetRanks, rows: Tensor, *, last: bool) -> TargetRanks:
    """Ranks with the target behind all that it is tied with, or before.

    Targets of one user that are tied with each other take places behind each other, as one list has them.
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
    """(T,) bool, whether the user has met the target before."""
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
