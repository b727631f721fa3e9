"""Parts of the targets that a model may treat otherwise: by history, popularity, repetition and time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqrec.evaluation.results.file import Results


@dataclass(frozen=True)
class Slice:
    """Some of the targets of a results file.

    Attributes:
        name: What tables call it.
        kept: (T,) bool, True at its targets.
    """

    name: str
    kept: NDArray[np.bool_]


def popularity_bounds(item_counts: NDArray[np.int64]) -> tuple[int, int]:
    """Training events from which an item is of the head, and from which of the torso; the rest is the tail.

    From the most popular item on, the items of the head hold the first third of all training events, those of the
    torso the second, those of the tail the last; items of equal count go together, upwards.

    Args:
        item_counts: (V,) how often each item occurs in training; item 0 is padding.
    """
    counts = np.sort(item_counts[1:])[::-1]
    held = np.cumsum(counts)
    head, torso = (int(counts[np.searchsorted(3 * held, share * held[-1])]) for share in (1, 2))
    return max(head, 1), max(torso, 1)


def slices_of(results: Results) -> list[Slice]:
    """Slices of the targets, without empty ones.

    Quarters of the users by the length of their history (in events); head, torso and tail of the items by
    training events (`popularity_bounds`); items that are new to the user and repeated ones; quarters of the
    targets by time, where the log has it. Quarters are of about the same size, as far as equal values allow.
    A user counts in each slice that holds at least one of its targets, with these targets alone.
    """
    frame, header = results.frame, results.header
    lengths = frame["history_length"].to_numpy()
    first_of_user = np.flatnonzero(np.diff(results.rows, prepend=-1))
    events = frame["item_train_events"].to_numpy()
    repeated = frame["repeated"].to_numpy()
    head, torso = events >= header.head_from, events >= header.torso_from
    slices = [
        *_quarters("history", lengths, lengths[first_of_user]),
        Slice(f"head ({header.head_from:,}+ training events)", head),
        Slice(f"torso ({header.torso_from:,}+ training events)", torso & ~head),
        Slice("tail (fewer training events)", ~torso & ~head),
        Slice("new item", ~repeated),
        Slice("repeated item", repeated),
    ]
    if not frame["timestamp"].has_nulls():
        times = frame["timestamp"].to_numpy()
        slices += _quarters("time", times, times)
    return [each for each in slices if each.kept.any()]


def _quarters(title: str, values: NDArray[np.int64], population: NDArray[np.int64]) -> list[Slice]:
    """Slices of `values` between the quartiles of `population`; fewer than four where quartiles are equal."""
    if len(population) == 0:
        return []
    ends = np.unique(np.quantile(population, [0.25, 0.5, 0.75, 1], method="higher"))
    number = np.searchsorted(ends, values)
    slices = []
    for quarter in range(len(ends)):
        kept = number == quarter
        inside = values[kept]
        slices.append(Slice(f"{title} {inside.min():,} to {inside.max():,}", kept))
    return slices
