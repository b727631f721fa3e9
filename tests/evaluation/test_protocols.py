from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_problems import Problem, random_problem, ranks_by_numpy

from seqrec.catalogue.scorer import Scorer
from seqrec.data.splits import GlobalTime, LastN, LeaveOneOut
from seqrec.errors import InputError
from seqrec.evaluation.metrics import hit_rate, ndcg
from seqrec.evaluation.protocols import (
    PRESETS,
    Candidates,
    FullRanking,
    PopularityCandidates,
    Protocol,
    SampledCandidates,
    SampledRanking,
    TrainingCounts,
    UniformCandidates,
    WholeCatalogue,
)
from seqrec.evaluation.protocols.sampled_candidates import draw_by_weight, first_distinct, hashed_uniforms
from seqrec.evaluation.target_ranks import Targets
from seqrec.specs import from_spec, to_spec
from seqrec.training.negatives import draw_unseen
from seqrec.types import HeldOutItems, History, RaggedItems, SeenItems, SequenceBatch

NUM_ITEMS = 40
INT64 = st.integers(-(2**63), 2**63 - 1)
SEEDS = st.integers(0, 10_000)
ORDER = "a user's events by timestamp, ties in log order"


def counts_of(seed: int, num_items: int = NUM_ITEMS) -> TrainingCounts:
    """Counts of which a third are 0, as of items that training lacks."""
    counts = np.random.default_rng(seed).integers(0, 9, num_items + 1) * (np.arange(num_items + 1) % 3 != 1)
    counts[0] = 0
    first = np.random.default_rng(seed + 1).integers(-20 * num_items, 7 * num_items, num_items + 1)
    # One item has no event.
    first[[0, -1]] = np.iinfo(np.int64).max
    return TrainingCounts(torch.from_numpy(counts), torch.from_numpy(first))


def users_batch(user_ids: list[int], num_items: int = NUM_ITEMS) -> SequenceBatch:
    """A batch of users whose histories and targets follow from their ids, as if read from one log."""
    histories = []
    for user in user_ids:
        generator = torch.Generator().manual_seed(user)
        histories.append(torch.randint(1, num_items + 1, (6,), generator=generator).tolist())
    events = torch.tensor(histories)
    lengths = torch.full((len(user_ids),), 5)
    asked_at = 100 + 17 * torch.tensor(user_ids) % (3 * num_items)
    return SequenceBatch(
        History(events[:, :5], lengths),
        events[:, 1:],
        torch.tensor(user_ids),
        RaggedItems.from_rows(list(events[:, :5])),
        held_out=HeldOutItems(events[:, 5], torch.arange(len(user_ids) + 1), asked_at),
    )


def targets_of(batch: SequenceBatch) -> Targets:
    return Targets(torch.arange(len(batch)), batch.last_targets)


def drawn_by(
    candidates: SampledCandidates,
    user_ids: list[int],
    batch_size: int,
    item_counts: TrainingCounts | None = None,
    *,
    filter_seen: bool = True,
) -> dict[int, list[int]]:
    """What each user's target is ranked against, evaluated in batches."""
    found = {}
    for first in range(0, len(user_ids), batch_size):
        batch = users_batch(user_ids[first : first + batch_size])
        drawn = candidates.drawn(targets_of(batch), batch, NUM_ITEMS, filter_seen=filter_seen, item_counts=item_counts)
        found.update(zip(batch.user_ids.tolist(), drawn.tolist(), strict=True))
    return found


def sampled(seed: int = 0, count: int = 25) -> list[SampledCandidates]:
    """Every kind of draw, with and without replacement."""
    return [
        UniformCandidates(count, seed=seed),
        UniformCandidates(count, seed=seed, trained_only=True),
        UniformCandidates(15, seed=seed, replacement=False),
        UniformCandidates(12, seed=seed, trained_only=True, replacement=False),
        PopularityCandidates(count, seed=seed, replacement=True),
        PopularityCandidates(12, seed=seed),
        UniformCandidates(count, seed=seed, alive_only=True),
        UniformCandidates(3, seed=seed, trained_only=True, alive_only=True, replacement=False),
        PopularityCandidates(3, seed=seed, alive_only=True),
    ]


def by_id(policy: Candidates | Protocol) -> str:
    return policy.id


class TestSampledCandidates:
    @pytest.mark.parametrize("kind", range(9))
    def test_they_depend_on_seed_and_user_alone(self, kind: int):
        users, counts = list(range(1, 31)), counts_of(0)
        expected = drawn_by(sampled(3)[kind], users, 30, counts)
        assert drawn_by(sampled(3)[kind], users, 7, counts) == expected
        assert drawn_by(sampled(3)[kind], users[::-1], 4, counts) == expected
        assert drawn_by(sampled(3)[kind], users[10:], 11, counts).items() <= expected.items()
        assert drawn_by(sampled(4)[kind], users, 30, counts)[1] != expected[1]
        assert expected[1] != expected[2]

    @pytest.mark.parametrize("candidates", sampled(), ids=by_id)
    @pytest.mark.parametrize("filter_seen", [True, False])
    def test_they_are_never_a_target_and_seen_or_untrained_only_where_allowed(
        self, candidates: SampledCandidates, filter_seen: bool
    ):
        users, counts = list(range(1, 41)), counts_of(1)
        drawn = drawn_by(candidates, users, 40, counts, filter_seen=filter_seen)
        batch = users_batch(users)
        met = 0
        for user, history, target in zip(
            users, batch.history.item_ids.tolist(), batch.last_targets.tolist(), strict=True
        ):
            items = set(drawn[user])
            assert len(drawn[user]) == candidates.count
            assert target not in items
            assert items <= set(range(1, NUM_ITEMS + 1))
            met += len(items & set(history))
            if candidates.needs_item_counts:
                assert counts.trained[drawn[user]].all()
            if candidates.alive_only:
                alive = counts.first_times[drawn[user]] <= batch.held_out.timestamps[user - 1]
                assert alive.all()
            if not candidates.replacement:
                assert len(items) == candidates.count
        assert (met == 0) == filter_seen

    def test_fewer_are_the_first_of_more(self):
        many = drawn_by(UniformCandidates(100), [1, 2, 3], 3)
        assert drawn_by(UniformCandidates(20), [1, 2, 3], 3) == {u: items[:20] for u, items in many.items()}
        distinct = drawn_by(PopularityCandidates(9), [1, 2, 3], 3, counts_of(0))
        few = drawn_by(PopularityCandidates(4), [1, 2, 3], 3, counts_of(0))
        assert few == {u: items[:4] for u, items in distinct.items()}

    def test_enough_uniform_ones_are_all_that_the_user_has_not_met(self):
        batch = users_batch([*range(1, 20)])
        drawn = drawn_by(UniformCandidates(1000), [*range(1, 20)], 19)
        for row, target in enumerate(batch.last_targets.tolist()):
            seen = {*batch.history.item_ids[row].tolist(), target}
            assert set(drawn[row + 1]) == set(range(1, NUM_ITEMS + 1)) - seen

    def test_popular_ones_are_drawn_in_proportion_to_their_counts(self):
        counts = counts_of(2)
        drawn = drawn_by(PopularityCandidates(20_000, replacement=True), [7], 1, counts)[7]
        batch = users_batch([7])
        free = counts.counts.double().clone()
        free[[*batch.history.item_ids[0].tolist(), *batch.last_targets.tolist()]] = 0
        expected = free / free.sum() * len(drawn)
        found = torch.bincount(torch.tensor(drawn), minlength=NUM_ITEMS + 1)
        assert (found[expected == 0] == 0).all()
        # Chi-square with about 25 degrees of freedom: 25 +- 7; the bound is five standard deviations up.
        possible = expected > 0
        assert ((found - expected)[possible] ** 2 / expected[possible]).sum() < possible.sum() + 5 * 7.1

    def test_a_user_who_has_met_everything_is_refused(self):
        batch = users_batch([1], num_items=1)
        scorer, states = Scorer(torch.zeros(2, 4)), torch.zeros(1, 4)
        with pytest.raises(InputError, match="a user has seen all 1 items"):
            SampledRanking(5).judge(states, batch, scorer)
        counts = TrainingCounts(torch.tensor([0, 3]))
        popular = Protocol(candidates=PopularityCandidates(1, replacement=True))
        with pytest.raises(InputError, match="a user has seen all items that could be drawn"):
            popular.judge(states, batch, scorer, counts)

    @pytest.mark.parametrize("kind", [UniformCandidates, PopularityCandidates])
    def test_more_different_ones_than_there_are_are_refused(self, kind: type[SampledCandidates]):
        counts = TrainingCounts(torch.ones(NUM_ITEMS + 1, dtype=torch.int64))
        assert counts.counts is not None
        counts.counts[0] = 0
        with pytest.raises(InputError, match=r"count=40 different candidates, but a user has only 3\d"):
            drawn_by(kind(40, replacement=False), [1], 1, counts)

    def test_items_that_are_hardly_ever_drawn_do_not_make_it_draw_forever(self):
        counts = torch.ones(NUM_ITEMS + 1, dtype=torch.int64)
        counts[0], counts[1] = 0, 2**40
        with pytest.raises(InputError, match=r"draws give fewer than 20 different candidates"):
            drawn_by(PopularityCandidates(20), [1, 2, 3], 3, TrainingCounts(counts))

    @pytest.mark.parametrize("candidates", [*sampled(), WholeCatalogue(trained_only=True)], ids=by_id)
    def test_missing_counts_and_those_of_another_catalogue_are_refused(self, candidates: Candidates):
        if not candidates.needs_item_counts:
            return
        batch, scorer, states = users_batch([1, 2]), Scorer(torch.zeros(NUM_ITEMS + 1, 4)), torch.zeros(2, 4)
        with pytest.raises(InputError, match=rf"{candidates.id}.* needs the items' counts in training"):
            Protocol(candidates=candidates).judge(states, batch, scorer)
        with pytest.raises(InputError, match="item_counts has 12 items, but the model has 40"):
            Protocol(candidates=candidates).judge(states, batch, scorer, counts_of(0, 12))

    @pytest.mark.parametrize("candidates", [WholeCatalogue(alive_only=True), UniformCandidates(3, alive_only=True)])
    def test_missing_times_and_those_of_another_catalogue_are_refused(self, candidates: Candidates):
        batch, scorer, states = users_batch([1, 2]), Scorer(torch.zeros(NUM_ITEMS + 1, 4)), torch.zeros(2, 4)
        protocol, counts = Protocol(candidates=candidates), counts_of(0)
        with pytest.raises(
            InputError, match=r"-?alive\) needs the times of the items' first events: .*first_times=data"
        ):
            protocol.judge(states, batch, scorer, TrainingCounts(counts.counts))
        with pytest.raises(InputError, match="first_times has 12 items, but the model has 40"):
            protocol.judge(states, batch, scorer, counts_of(0, 12))
        with pytest.raises(InputError, match="alive_only needs the times of the targets, but the batch has none"):
            protocol.judge(states, replace(batch, held_out=None), scorer, counts)

    @pytest.mark.parametrize("kind", [UniformCandidates, PopularityCandidates])
    def test_no_candidates_are_refused(self, kind: type[SampledCandidates]):
        with pytest.raises(InputError, match="count=0 must be at least 1"):
            kind(0)
        with pytest.raises(InputError, match="num_negatives=0 must be at least 1"):
            SampledRanking(0)


def avoided(sets: list[list[int]]) -> SeenItems:
    rows = torch.tensor([row for row, items in enumerate(sets) for _ in items], dtype=torch.int64)
    return SeenItems.from_events(rows, torch.tensor([i for items in sets for i in items]).long(), len(sets))


class TestDrawByWeight:
    @settings(deadline=None)
    @given(SEEDS, st.integers(1, 4), st.integers(2, 12))
    def test_each_slot_that_is_not_avoided_is_drawn_as_often(self, seed: int, rows: int, num_items: int):
        rng = np.random.default_rng(seed)
        weights = rng.integers(0, 4, num_items + 1)
        weights[0], weights[1] = 0, 2
        sets = [rng.permutation(np.arange(2, num_items + 1))[: rng.integers(num_items)].tolist() for _ in range(rows)]
        for row, items in enumerate(sets):
            slots = [item for item in range(num_items + 1) if item not in items for _ in range(weights[item])]
            # The middle of each slot.
            uniforms = (torch.arange(len(slots), dtype=torch.float64) + 0.5) / len(slots)
            found = draw_by_weight(uniforms.expand(rows, -1).contiguous(), avoided(sets), torch.from_numpy(weights))
            assert found[row].tolist() == slots

    @settings(deadline=None)
    @given(SEEDS, st.integers(1, 4), st.integers(2, 30))
    def test_equal_weights_draw_as_the_uniform_negatives_do(self, seed: int, rows: int, num_items: int):
        rng = np.random.default_rng(seed)
        sets = [rng.permutation(num_items)[: rng.integers(num_items)].tolist() for _ in range(rows)]
        avoid = avoided([[item + 1 for item in items] for items in sets])
        uniforms = hashed_uniforms(torch.arange(rows), 50, seed)
        weights = torch.ones(num_items + 1, dtype=torch.int64)
        weights[0] = 0
        expected = draw_unseen(uniforms, torch.arange(rows), avoid, num_items)
        assert draw_by_weight(uniforms, avoid, weights).equal(expected)

    @settings(deadline=None)
    @given(SEEDS, st.integers(1, 4), st.integers(3, 12))
    def test_with_a_last_item_it_draws_as_from_a_catalogue_that_ends_there(self, seed: int, rows: int, num_items: int):
        rng = np.random.default_rng(seed)
        weights = torch.from_numpy(rng.integers(1, 4, num_items + 1))
        weights[0] = 0
        last = torch.from_numpy(rng.integers(2, num_items + 1, rows))
        # Item 1 is free for all.
        sets = [(rng.permutation(end - 1)[: rng.integers(end)] + 2).tolist() for end in last.tolist()]
        uniforms = hashed_uniforms(torch.arange(rows), 50, seed)
        found = draw_by_weight(uniforms, avoided(sets), weights, last)
        for row, end in enumerate(last.tolist()):
            alone = draw_by_weight(uniforms[row : row + 1], avoided([sets[row]]), weights[: end + 1])
            assert found[row : row + 1].equal(alone)

    @pytest.mark.parametrize("total", [3, 2**53 - 1, 2**53 + 3, 2**54 + 6])
    def test_the_largest_number_below_one_is_the_last_item(self, total: int):
        weights = torch.tensor([0, total - total // 2, total // 2])
        nearly_one = torch.tensor([[1 - 2**-53]], dtype=torch.float64)
        assert draw_by_weight(nearly_one, avoided([[]]), weights).tolist() == [[2]]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=64, max_size=64), min_size=1, max_size=4), st.integers(1, 9))
def test_first_distinct_keeps_the_order_of_the_draws(rows: list[list[int]], count: int):
    stream = torch.tensor([row + list(range(1, 10)) * 8 for row in rows])
    found = first_distinct(lambda number: stream[:, :number], count)
    assert found.tolist() == [list(dict.fromkeys(row))[:count] for row in stream.tolist()]


ALL_WHOLE = [
    WholeCatalogue(trained_only=trained_only, alive_only=alive_only)
    for trained_only in (False, True)
    for alive_only in (False, True)
]
ALL_PROTOCOLS = [
    Protocol(candidates=candidates, filter_seen=filter_seen, ties=ties)
    for candidates in (*ALL_WHOLE, *sampled(count=8))
    for filter_seen in (True, False)
    for ties in ("mean", "pessimistic", "optimistic")
]


def listed(protocol: Protocol, problem: Problem, counts: TrainingCounts) -> list[list[int]]:
    """Each user's candidates without its targets."""
    num_items = len(problem.vectors) - 1
    if isinstance(protocol.candidates, SampledCandidates):
        drawn = protocol.candidates.drawn(
            problem.targets, problem.batch, num_items, filter_seen=protocol.filter_seen, item_counts=counts
        )
        return drawn.tolist()
    allowed = range(1, num_items + 1)
    if protocol.candidates.needs_item_counts:
        allowed = [item for item in allowed if counts.trained[item]]
    hidden = problem.histories if protocol.filter_seen else [[]] * len(problem.histories)
    found = [[item for item in allowed if item not in history] for history in hidden]
    if protocol.candidates.needs_first_times:
        # The first of a user's held-out events is when it is asked.
        asked = [items[0] * 7 for items in problem.held_out]
        found = [[i for i in row if counts.first_times[i] <= at] for row, at in zip(found, asked, strict=True)]
    return found


class TestProtocol:
    @settings(deadline=None, max_examples=60)
    @given(SEEDS, st.sampled_from(ALL_PROTOCOLS), st.integers(1, 5), st.integers(1, 4))
    def test_judged_targets_equal_numpys(self, seed: int, protocol: Protocol, num_users: int, most_targets: int):
        problem = random_problem(seed, num_users, NUM_ITEMS, most_targets)
        counts = counts_of(seed)
        candidates = listed(protocol, problem, counts)
        judged = protocol.judge(problem.states, problem.batch, Scorer(problem.vectors), counts)
        better, tied = ranks_by_numpy(problem.scores(), problem.held_out, candidates)
        assert judged.item_ids.tolist() == problem.targets.item_ids.tolist()
        assert judged.rows.tolist() == problem.targets.rows.tolist()
        assert judged.timestamps.tolist() == (problem.targets.item_ids * 7).tolist()
        assert judged.user_ids.tolist() == list(range(1, num_users + 1))
        assert judged.history_lengths.tolist() == [len(history) for history in problem.histories]
        assert judged.repeated.tolist() == [
            item in history
            for items, history in zip(problem.held_out, problem.histories, strict=True)
            for item in items
        ]
        found = judged.ranks.better.tolist(), judged.ranks.tied.tolist()
        if protocol.ties == "mean":
            assert found == (better, tied)
            return
        assert found[1] == [0] * len(tied)
        # By hand: all of one user's targets of one score, in the order of targets, behind or before the others.
        scores, expected = problem.scores(), []
        for row, items in enumerate(problem.held_out):
            for number, target in enumerate(items):
                index = len(expected)
                equals = [item for item in items if scores[row, item] == scores[row, target]]
                nth = sum(scores[row, item] == scores[row, target] for item in items[:number])
                others = tied[index] + 1 - len(equals)
                expected.append(better[index] + nth + (others if protocol.ties == "pessimistic" else 0))
        assert found[0] == expected

    def test_a_batch_that_names_no_held_out_items_is_judged_by_its_last_targets(self):
        batch, vectors = replace(users_batch([3, 5, 9]), held_out=None), torch.randn(NUM_ITEMS + 1, 4)
        judged = FullRanking().judge(torch.randn(3, 4), batch, Scorer(vectors))
        assert judged.item_ids.tolist() == batch.last_targets.tolist()
        assert judged.rows.tolist() == [0, 1, 2]
        assert judged.timestamps is None

    @pytest.mark.parametrize("ties", ["mean", "pessimistic", "optimistic"])
    def test_constant_scores_give_chance_level(self, ties: str):
        problem = random_problem(0, 30, NUM_ITEMS, 1, width=4)
        problem.vectors.zero_()
        protocol = Protocol(filter_seen=False, ties=ties)
        judged = protocol.judge(problem.states, problem.batch, Scorer(problem.vectors))
        chance = {"mean": 10 / NUM_ITEMS, "pessimistic": 0.0, "optimistic": 1.0}[ties]
        gain = {"mean": sum(1 / np.log2(1 + rank) for rank in range(1, 11)) / NUM_ITEMS}.get(ties, chance)
        assert hit_rate(judged, 10).tolist() == pytest.approx([chance] * 30, abs=1e-12)
        assert ndcg(judged, 10, "achievable").tolist() == pytest.approx([gain] * 30, abs=1e-12)

    def test_seen_items_are_candidates_only_where_they_are_kept(self):
        # User has met items 1 and 2, which score above the target, item 3; so does item 4, which is new.
        vectors = torch.tensor([[9.0], [5.0], [4.0], [1.0], [3.0], [0.0]])
        batch = SequenceBatch(
            History(torch.tensor([[1, 2]]), torch.tensor([2])),
            torch.tensor([[2, 3]]),
            torch.tensor([1]),
            RaggedItems.from_rows([torch.tensor([1, 2])]),
        )
        filtered = FullRanking().judge(torch.ones(1, 1), batch, Scorer(vectors)).ranks
        kept = FullRanking(filter_seen=False).judge(torch.ones(1, 1), batch, Scorer(vectors)).ranks
        assert (filtered.better.tolist(), kept.better.tolist()) == ([1], [3])

    def test_it_takes_split_and_order_from_its_data(self):
        protocol = SampledRanking(50, seed=7).on(LastN(5), ORDER)
        assert protocol.id == "uniform50-seenout-tiemean-last5-seed7"
        assert protocol.describe()["split"] == {"class": "LastN", "n": 5}
        assert protocol.describe()["order"] == ORDER
        assert protocol.on(LastN(5), ORDER) == protocol

    def test_data_of_another_split_or_order_is_refused(self):
        with pytest.raises(InputError, match=r"split loo, but the data is divided by last3: set --data.split Leave"):
            Protocol.preset("sasrec-100").on(LastN(3), ORDER)
        with pytest.raises(InputError, match=r"set --data.split LastN --data.split.n 3"):
            Protocol(split=LastN(3)).on(LeaveOneOut(), ORDER)
        with pytest.raises(InputError, match="but the store has 'log order'"):
            Protocol(order=ORDER).on(LeaveOneOut(), "log order")

    def test_equal_protocols_are_equal_and_hash_alike_however_they_were_built(self):
        built = Protocol(candidates=UniformCandidates(100))
        assert built == SampledRanking()
        assert len({built, SampledRanking(), copy.deepcopy(built), pickle.loads(pickle.dumps(built))}) == 1
        assert built != SampledRanking(seed=1)
        assert built != built.on(LeaveOneOut(), ORDER)  # the order of events is part of it

    def test_a_protocol_cannot_be_changed(self):
        with pytest.raises(AttributeError, match="filter_seen of a protocol cannot be set"):
            FullRanking().filter_seen = False

    @pytest.mark.parametrize(("name", "value"), [("ties", "random"), ("normaliser", "ideal")])
    def test_unknown_words_are_refused(self, name: str, value: str):
        with pytest.raises(InputError, match=f"{name}='{value}' must be one of"):
            Protocol(**{name: value})

    def test_every_setting_moves_the_id(self):
        protocols = [
            Protocol(candidates=candidates, filter_seen=filter_seen, ties=ties, normaliser=normaliser, split=split)
            for candidates in (*ALL_WHOLE, *sampled(0), *sampled(1))
            for filter_seen in (True, False)
            for ties in ("mean", "pessimistic", "optimistic")
            for normaliser in ("achievable", "cutoff", "none")
            for split in (LeaveOneOut(), LastN(2), GlobalTime(), GlobalTime(warm_up=3), GlobalTime(30, 20))
        ]
        assert len({protocol.id for protocol in protocols}) == len(protocols)

    @pytest.mark.parametrize("protocol", [*ALL_PROTOCOLS[::5], SampledRanking(3, seed=2)], ids=by_id)
    def test_specs_and_descriptions_are_plain(self, protocol: Protocol):
        assert from_spec(json.loads(json.dumps(to_spec(protocol)))) == protocol
        assert json.loads(json.dumps(protocol.describe())) == protocol.describe()


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        (FullRanking(), "full-seenout-tiemean-loo"),
        (FullRanking(filter_seen=False), "full-seenin-tiemean-loo"),
        (FullRanking(alive_only=True), "full-alive-seenout-tiemean-loo"),
        (
            Protocol(candidates=PopularityCandidates(9, alive_only=True)),
            "popularity9-alive-distinct-seenout-tiemean-loo-seed0",
        ),
        (SampledRanking(), "uniform100-seenout-tiemean-loo-seed0"),
        (SampledRanking(50, seed=7), "uniform50-seenout-tiemean-loo-seed7"),
        (Protocol(candidates=PopularityCandidates()), "popularity100-distinct-seenout-tiemean-loo-seed0"),
        (
            Protocol(split=GlobalTime(30, 20), ties="pessimistic"),
            "full-seenout-tiepessimistic-time30-val20-warm1",
        ),
        (Protocol.preset("sasrec-100"), "uniform100-seenout-tiemean-loo-seed0"),
        (Protocol.preset("gsasrec"), "full-seenout-tiemean-loo"),
        (Protocol.preset("recbole"), "full-seenin-tiemean-loo"),
        (Protocol.preset("rectools"), "full-trained-seenout-tiemean-loo-ndcgcutoff"),
        (Protocol.preset("hstu"), "full-seenout-tiemean-loo-trainval"),
        (Protocol(request_time=True), "full-seenout-tiemean-loo-requesttime"),
    ],
)
def test_a_protocols_name_holds_each_of_its_settings(protocol: Protocol, expected: str):
    assert protocol.id == expected


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=f"unknown protocol 'sasrec'; known: {', '.join(sorted(PRESETS))}"):
        Protocol.preset("sasrec")


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
