from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from seqrec.errors import InputError
from seqrec.evaluation.results import bootstrap_means, intervals, percentile_intervals, sign_flip_p_values


@pytest.fixture(params=["by distinct rows", "by blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to draw, with blocks and parts so small that there are many."""
    monkeypatch.setattr(intervals, "HELD_WEIGHTS", 1000)
    if request.param == "by blocks":
        monkeypatch.setattr(intervals, "_are_few", lambda rows, values: False)
        monkeypatch.setattr(intervals, "BLOCK_USERS", 13)
    return request.param


def test_resampled_means_have_the_variance_of_drawing_with_replacement(way: str):
    rng = np.random.default_rng(1)
    values = np.stack([rng.random(60), rng.random(60) < 0.3], axis=1).astype(float)
    means = bootstrap_means(values, resamples=4000, seed=0)
    assert means.shape == (4000, 2)
    assert means.mean(0) == pytest.approx(values.mean(0), abs=0.005)
    # A mean of U draws with replacement has the values' variance by U.
    assert means.var(0) == pytest.approx(values.var(0) / 60, rel=0.1)
    assert np.corrcoef(means.T)[0, 1] == pytest.approx(np.corrcoef(values.T)[0, 1], abs=0.06)


def test_every_resample_has_as_many_users_as_there_are(way: str):
    assert bootstrap_means(np.full((40, 1), 3.0), resamples=50, seed=0).tolist() == [[3.0]] * 50


def test_resamples_of_a_few_users_are_those_of_all_ways_to_draw_them(way: str):
    values = np.array([[0.0], [1.0], [10.0]])
    expected = [sum(draw) / 3 for draw in itertools.product([0.0, 1.0, 10.0], repeat=3)]
    means = bootstrap_means(values, resamples=20_000, seed=0)[:, 0]
    for mean in set(expected):
        share = np.isclose(means, mean).mean()
        assert share == pytest.approx(expected.count(mean) / 27, abs=0.015)


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda rng, shape: (rng.random(shape) < 0.1).astype(float), 0.1),
        (lambda rng, shape: rng.beta(0.5, 2, shape), 0.2),
    ],
    ids=["hits", "gains"],
)
def test_intervals_hold_the_mean_as_often_as_they_say(draw, mean: float):
    populations = draw(np.random.default_rng(2), (200, 200))
    held = 0
    for seed, values in enumerate(populations):
        (low, high) = percentile_intervals(bootstrap_means(values[:, None], resamples=200, seed=seed), 0.9)[0]
        held += low <= mean <= high
    # 200 draws of a share of 0.9 stray by 0.02; percentile intervals of 200 users are a little narrow.
    assert 0.84 <= held / 200 <= 0.95


def test_percentile_intervals_are_the_quantiles_of_each_column():
    means = np.stack([np.arange(1001), 1000 - np.arange(1001) * 2.0], axis=1)
    assert percentile_intervals(means, 0.9) == pytest.approx(np.array([[50, 950], [-900, 900]]), abs=1e-9)


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.1, math.nan])
def test_a_confidence_that_is_no_share_is_refused(confidence: float):
    with pytest.raises(InputError, match=f"confidence={confidence} must lie between 0 and 1"):
        percentile_intervals(np.zeros((10, 1)), confidence)


def test_the_p_value_is_that_of_all_sign_flips(way: str):
    differences = np.array([0.3, -0.1, 0.4, 0.2, 0.25, -0.05, 0.1, 0.3])
    flips = [sum(np.array(s) * differences) for s in itertools.product([1, -1], repeat=8)]
    exact = np.mean([abs(flip) >= abs(differences.sum()) - 1e-12 for flip in flips])
    found = sign_flip_p_values(differences[:, None], resamples=20_000, seed=0)
    assert found[0] == pytest.approx(exact, abs=0.005)
    # Columns are tested side by side, and which of the runs comes first does not matter.
    both = sign_flip_p_values(np.stack([differences, -2 * differences], axis=1), resamples=500, seed=0)
    assert both[0] == both[1]


def test_p_values_are_evenly_spread_where_chance_decides():
    differences = np.random.default_rng(3).normal(size=(50, 300))
    p_values = sign_flip_p_values(differences, resamples=199, seed=0)
    for level in (0.05, 0.25, 0.5):
        assert (p_values <= level).mean() == pytest.approx(level, abs=3 * math.sqrt(level / 300) + 0.02)


def test_runs_that_are_equal_have_a_p_value_of_one_and_none_has_zero(way: str):
    assert sign_flip_p_values(np.zeros((30, 1)), resamples=99, seed=0).tolist() == [1]
    assert sign_flip_p_values(np.ones((300, 1)), resamples=99, seed=0).tolist() == [0.01]


def test_a_seed_repeats_its_draws_and_another_does_not(way: str):
    values = np.random.default_rng(4).random((50, 1))
    for function in (bootstrap_means, sign_flip_p_values):
        first, again, other = (function(values - 0.5, resamples=200, seed=seed) for seed in (5, 5, 6))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


def test_how_many_users_of_a_block_are_drawn_is_chance_too(way: str):
    # Users 26 to 29 are all of the last block.
    values = np.zeros((30, 1))
    values[26:] = 1
    means = bootstrap_means(values, resamples=4000, seed=0)
    assert means.mean() == pytest.approx(4 / 30, abs=0.005)
    assert means.var() == pytest.approx(values.var() / 30, rel=0.1)
