"""Uncertainty of means over users: bootstrap intervals and a paired test.

U users, M columns (metrics, of one run or of several), R resamples. Users are drawn, not targets, because the targets
of one user are not independent. Ihemelandu & Ekstrand 2023, Inference at Scale, find that bootstrap and randomisation
keep their error rates with thousands of users, and that Wilcoxon's test and the sign test do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from seqrec.errors import InputError

Float64 = NDArray[np.float64]

# Weights held at a time: 2^21 of 8 bytes are 16 MiB.
HELD_WEIGHTS = 1 << 21
# Users drawn from at a time if nearly all differ; their weights stay in a core's cache.
BLOCK_USERS = 1 << 14


def bootstrap_means(values: Float64, *, resamples: int, seed: int) -> Float64:
    """Return the means (R, M) of R resamples of U users each, drawn with replacement.

    Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 6. All columns of `values` (U, M), U >= 1, get
    the same resamples, so differences of columns are those of paired runs. Users are drawn by counting: the number of
    times that each distinct row of values is drawn is multinomial, and ranks leave few distinct rows. If most rows
    differ, users are drawn block by block. Memory is that of `values` and a few MiB.
    """
    rng = np.random.default_rng(seed)
    rows, counts = np.unique(values, axis=0, return_counts=True)
    if _are_few(rows, values):
        shares = counts / len(values)
        sums = _weighted_sums(rows, resamples, lambda size: rng.multinomial(len(values), shares, size=size))
    else:
        sums = _block_sums(values, resamples, rng)
    return sums / len(values)


def percentile_intervals(means: Float64, confidence: float) -> Float64:
    """Return the low and high end (M, 2) of the central `confidence` of the resampled means (R, M), in float64.

    Raises:
        InputError: if `confidence` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} must lie between 0 and 1, such as 0.95")
    tail = (1 - confidence) / 2
    ends: Float64 = np.quantile(means, [tail, 1 - tail], axis=0).T
    return ends


def sign_flip_p_values(differences: Float64, *, resamples: int, seed: int) -> Float64:
    """Return the two-sided probability (M,) of a mean difference at least this far from 0 if the runs were
    exchangeable.

    Fisher's randomisation test for paired runs (Smucker, Allan & Carterette 2007, A Comparison of Statistical
    Significance Tests for Information Retrieval Evaluation): each user's difference, of `differences` (U, M), U >= 1,
    keeps or changes its sign with equal probability, R times. The observed signs count as one draw, so no p-value is 0
    (Phipson & Smyth 2010); the smallest is 1 / (R + 1).
    """
    rng = np.random.default_rng(seed)
    rows, counts = np.unique(differences, axis=0, return_counts=True)
    if _are_few(rows, differences):
        draws = _weighted_sums(
            rows, resamples, lambda size: 2 * rng.binomial(counts, 0.5, size=(size, len(counts))) - counts
        )
    else:
        draws = _weighted_sums(differences, resamples, lambda size: _signs(rng, size, len(differences)))
    # Sums of the same numbers in another order may differ by rounding.
    rounding = 1e-12 * np.abs(differences).sum(0)
    extreme = np.abs(draws) >= np.abs(differences.sum(0)) - rounding
    p_values: Float64 = (1 + extreme.sum(0)) / (1 + resamples)
    return p_values


def _are_few(rows: Float64, values: Float64) -> bool:
    """Return whether counting distinct rows is less work than drawing users."""
    return len(values) <= BLOCK_USERS or 8 * len(rows) <= len(values)


def _weighted_sums(rows: Float64, resamples: int, draw: Callable[[int], NDArray[np.generic]]) -> Float64:
    """Return sums (R, M) of rows (N, M) by weights (size, N) that are drawn for a few resamples at a time."""
    sums = np.empty((resamples, rows.shape[1]))
    for part in _parts(resamples, len(rows)):
        sums[part] = draw(part.stop - part.start).astype(np.float64) @ rows
    return sums


def _block_sums(values: Float64, resamples: int, rng: np.random.Generator) -> Float64:
    """Return sums (R, M) over resamples: draw the number of users of each block, then the users."""
    blocks = [values[begin : begin + BLOCK_USERS] for begin in range(0, len(values), BLOCK_USERS)]
    sizes = np.array([len(block) for block in blocks])
    drawn = rng.multinomial(len(values), sizes / len(values), size=resamples)
    sums = np.zeros((resamples, values.shape[1]))
    for block, from_block in zip(blocks, drawn.T, strict=True):
        for part in _parts(resamples, len(block)):
            drawn_users = (rng.integers(len(block), size=number) for number in from_block[part].tolist())
            weights = [np.bincount(users, minlength=len(block)) for users in drawn_users]
            sums[part] += np.stack(weights).astype(np.float64) @ block
    return sums


def _signs(rng: np.random.Generator, size: int, num_users: int) -> NDArray[np.int8]:
    """Return (size, U) +1 or -1 with equal probability, one random bit each."""
    random_bytes = rng.integers(256, size=(size, -(-num_users // 8)), dtype=np.uint8)
    bits = np.unpackbits(random_bytes, axis=1, count=num_users).view(np.int8)
    return 2 * bits - 1


def _parts(resamples: int, width: int) -> Iterator[slice]:
    """Yield the resamples in parts with weights (part, width) that fit into `HELD_WEIGHTS`."""
    size = max(1, HELD_WEIGHTS // max(width, 1))
    for begin in range(0, resamples, size):
        yield slice(begin, min(begin + size, resamples))
