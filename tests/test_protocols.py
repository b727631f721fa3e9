from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqrec.errors import InputError
from seqrec.protocols import FullRanking, Protocol, SampledRanking, hashed_uniforms
from seqrec.scoring import Scorer
from seqrec.types import History, RaggedItems, SequenceBatch, TargetRanks

NUM_ITEMS = 40
INT64 = st.integers(-(2**63), 2**63 - 1)


class RecordingScorer(Scorer):
    """Keeps the candidates that it is asked for."""

    candidates: Tensor

    def candidate_ranks(self, states: Tensor, targets: Tensor, candidates: Tensor) -> TargetRanks:
        self.candidates = candidates
        return super().candidate_ranks(states, targets, candidates)


def users_batch(user_ids: list[int], num_items: int = NUM_ITEMS) -> SequenceBatch:
    """A batch of users whose histories and targets follow from their ids, as if read from one log."""
    histories = []
    for user in user_ids:
        generator = torch.Generator().manual_seed(user)
        histories.append(torch.randint(1, num_items + 1, (6,), generator=generator).tolist())
    events = torch.tensor(histories)
    lengths = torch.full((len(user_ids),), 5)
    return SequenceBatch(
        History(events[:, :5], lengths),
        events[:, 1:],
        torch.tensor(user_ids),
        RaggedItems.from_rows(list(events[:, :5])),
    )


def scorer(seed: int = 0, width: int = 4) -> RecordingScorer:
    return RecordingScorer(torch.randn((NUM_ITEMS + 1, width), generator=torch.Generator().manual_seed(seed)))


def candidates_of(
    protocol: SampledRanking, user_ids: list[int], batch_size: int, model: RecordingScorer
) -> dict[int, list[int]]:
    """What each user's target is ranked against, evaluated in batches."""
    found = {}
    for first in range(0, len(user_ids), batch_size):
        batch = users_batch(user_ids[first : first + batch_size])
        protocol.ranks(torch.randn(len(batch), model.item_vectors.shape[1]), batch, model)
        found.update(zip(batch.user_ids.tolist(), model.candidates.tolist(), strict=True))
    return found


class TestSampledRanking:
    def test_candidates_depend_on_seed_and_user_alone(self):
        users = list(range(1, 31))
        expected = candidates_of(SampledRanking(seed=3), users, 30, scorer())
        assert candidates_of(SampledRanking(seed=3), users, 7, scorer(1, width=9)) == expected
        assert candidates_of(SampledRanking(seed=3), users[::-1], 4, scorer(2)) == expected
        assert candidates_of(SampledRanking(seed=3), users[10:], 11, scorer()).items() <= expected.items()

    def test_another_seed_and_another_user_meet_other_candidates(self):
        first = candidates_of(SampledRanking(seed=0), [1, 2], 2, scorer())
        second = candidates_of(SampledRanking(seed=1), [1, 2], 2, scorer())
        assert first[1] != second[1]
        assert first[1] != first[2]

    def test_fewer_candidates_are_the_first_of_more(self):
        many = candidates_of(SampledRanking(100), [1, 2, 3], 3, scorer())
        few = candidates_of(SampledRanking(20), [1, 2, 3], 3, scorer())
        assert few == {user: items[:20] for user, items in many.items()}

    def test_candidates_are_all_that_the_user_has_not_met_and_never_the_target(self):
        batch, model = users_batch([*range(1, 20)]), scorer()
        SampledRanking(1000).ranks(torch.randn(19, 4), batch, model)
        bounds = batch.seen.offsets.tolist()
        for row, target in enumerate(batch.last_targets.tolist()):
            seen = {*batch.seen.item_ids[bounds[row] : bounds[row + 1]].tolist(), target}
            assert set(model.candidates[row].tolist()) == set(range(1, NUM_ITEMS + 1)) - seen

    def test_ranks_equal_a_count_over_the_candidates(self):
        batch, model, states = users_batch([4, 2, 9]), scorer(), torch.randn(3, 4)
        ranks = SampledRanking(50).ranks(states, batch, model)
        scores = states @ model.item_vectors.T
        for row, target in enumerate(batch.last_targets.tolist()):
            above = sum(bool(scores[row, item] > scores[row, target]) for item in model.candidates[row])
            assert ranks.better[row] == above
            assert ranks.tied[row] == 0

    def test_a_user_who_has_met_everything_is_refused(self):
        batch = users_batch([1], num_items=1)
        with pytest.raises(InputError, match="a user has seen all 1 items"):
            SampledRanking(5).ranks(torch.zeros(1, 4), batch, Scorer(torch.zeros(2, 4)))

    def test_no_candidates_are_refused(self):
        with pytest.raises(InputError, match="num_negatives=0 must be at least 1"):
            SampledRanking(0)


class TestFullRanking:
    def test_seen_items_are_candidates_only_where_they_are_kept(self):
        # User has met items 1 and 2, which score above the target, item 3; so does item 4, which is new.
        vectors = torch.tensor([[9.0], [5.0], [4.0], [1.0], [3.0], [0.0]])
        batch = SequenceBatch(
            History(torch.tensor([[1, 2]]), torch.tensor([2])),
            torch.tensor([[2, 3]]),
            torch.tensor([1]),
            RaggedItems.from_rows([torch.tensor([1, 2])]),
        )
        filtered = FullRanking().ranks(torch.ones(1, 1), batch, Scorer(vectors))
        kept = FullRanking(filter_seen=False).ranks(torch.ones(1, 1), batch, Scorer(vectors))
        assert (filtered.better.tolist(), kept.better.tolist()) == ([1], [3])

    def test_filtering_can_only_shorten_the_list(self):
        batch, model, states = users_batch([*range(1, 20)]), scorer(), torch.randn(19, 4)
        filtered = FullRanking().ranks(states, batch, model)
        kept = FullRanking(filter_seen=False).ranks(states, batch, model)
        assert (filtered.better <= kept.better).all()
        assert (filtered.better < kept.better).any()


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        (FullRanking(), "full-seenout-tiemean-loo"),
        (FullRanking(filter_seen=False), "full-seenin-tiemean-loo"),
        (SampledRanking(), "uniform100-seenout-tiemean-loo-seed0"),
        (SampledRanking(50, seed=7), "uniform50-seenout-tiemean-loo-seed7"),
    ],
)
def test_a_protocols_name_holds_each_of_its_settings(protocol: Protocol, expected: str):
    assert protocol.id == expected


def split_mix_slowly(key: int, column: int, seed: int) -> float:
    """One number, with Python's unbounded integers cut to 64 bits after each step."""
    bits = 2**64
    golden = 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % bits
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % bits
        return x ^ (x >> 31)

    stream = mix((key * golden + seed) % bits)
    return (mix((stream + column) * golden % bits) >> 11) * 2.0**-53


class TestHashedUniforms:
    @given(st.lists(INT64, min_size=1, max_size=4), st.integers(1, 5), INT64)
    def test_numbers_equal_split_mix_with_pythons_integers(self, keys: list[int], count: int, seed: int):
        found = hashed_uniforms(torch.tensor(keys), count, seed)
        expected = [[split_mix_slowly(key, column, seed) for column in range(count)] for key in keys]
        assert found.dtype == torch.float64
        assert found.tolist() == expected
        assert ((found >= 0) & (found < 1)).all()

    @pytest.mark.parametrize("seed", [0, 1, 12345])
    def test_numbers_of_users_that_follow_each_other_look_uniform(self, seed: int):
        numbers = hashed_uniforms(torch.arange(1, 2001), 100, seed)
        assert abs(numbers.mean() - 0.5) < 5 * (1 / 12 / numbers.numel()) ** 0.5
        # Chi-square with 99 degrees of freedom: 99 +- 14.1; the bound is five standard deviations up.
        for values in (numbers.flatten(), numbers[:, 0], numbers[:, 99]):
            expected = values.numel() / 100
            counts = torch.histc(values, 100, 0, 1)
            assert ((counts - expected) ** 2 / expected).sum() < 99 + 5 * 14.1

    def test_neighbouring_columns_users_and_seeds_are_not_correlated(self):
        numbers = hashed_uniforms(torch.arange(1, 2001), 100, 0)
        other_seed = hashed_uniforms(torch.arange(1, 2001), 100, 1)
        pairs = [(numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:]), (numbers, other_seed)]
        for left, right in pairs:
            correlation = torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1]
            assert abs(correlation) < 5 / left.numel() ** 0.5
