from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_problems import Problem, as_lists, random_problem, ranks_by_numpy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqrec.benchmark.measurement import peak_bytes
from seqrec.catalogue.scorer import Scorer
from seqrec.evaluation import target_ranks as ranks_module
from seqrec.evaluation.target_ranks import Targets, candidate_ranks, catalogue_ranks
from seqrec.types import RaggedItems

SEEDS = st.integers(0, 10_000)
BUDGETS = st.sampled_from([1, 80, 160, 10**6])
# NaN in an item and in a state, and what a product makes of infinities.
WRONG = st.sampled_from(["nothing", "nan item", "nan state", "inf item", "-inf item"])


def spoil(problem: Problem, wrong: str, seed: int) -> None:
    """Put something in a vector that is no number; by turns in a target's."""
    item = problem.held_out[0][0] if seed % 2 else 1 + seed % (len(problem.vectors) - 1)
    if wrong == "nan state":
        problem.states[seed % len(problem.states)] = math.nan
    elif wrong != "nothing":
        problem.vectors[item] = {"nan item": math.nan, "inf item": math.inf, "-inf item": -math.inf}[wrong]


class OneProduct(Scorer):
    """Scores by a table, of which no rounding is known."""

    def rounding(self, states: Tensor) -> None:
        return None


class TestCatalogueRanks:
    @settings(deadline=None, max_examples=150)
    @given(
        SEEDS,
        st.integers(1, 5),
        st.integers(1, 70),
        st.integers(1, 6),
        BUDGETS,
        WRONG,
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.sampled_from([Scorer, OneProduct]),
    )
    def test_ranks_equal_numpys(
        self,
        seed: int,
        num_users: int,
        num_items: int,
        most_targets: int,
        budget: int,
        wrong: str,
        filtered: bool,
        trained_only: bool,
        alive_only: bool,
        scorer_class: type[Scorer],
    ):
        problem = random_problem(seed, num_users, num_items, most_targets)
        spoil(problem, wrong, seed)
        trained = torch.arange(num_items + 1) % 3 != seed % 3
        first_times = (torch.arange(num_items + 1) + seed) * 5 % 7
        asked_at = (torch.arange(num_users) + seed) % 7
        alive = first_times <= asked_at.unsqueeze(1)
        candidates = [
            [
                item
                for item in range(1, num_items + 1)
                if not (filtered and item in history)
                and (trained[item] or not trained_only)
                and (alive[row, item] or not alive_only)
            ]
            for row, history in enumerate(problem.histories)
        ]
        found = catalogue_ranks(
            scorer_class(problem.vectors, score_budget=budget),
            problem.states,
            problem.targets,
            hidden=problem.batch.seen_events if filtered else None,
            trained=trained if trained_only else None,
            first_times=first_times if alive_only else None,
            asked_at=asked_at if alive_only else None,
        )
        assert as_lists(found) == ranks_by_numpy(problem.scores(), problem.held_out, candidates)

    def test_a_target_that_was_seen_stays_a_candidate_for_itself_and_for_the_users_others(self):
        vectors = torch.tensor([[0.0, 0.0], [3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [9.0, 0.0]])
        seen = RaggedItems.from_rows([torch.tensor([1, 2, 4])])
        targets = Targets(torch.tensor([0, 0]), torch.tensor([2, 3]))
        found = catalogue_ranks(Scorer(vectors), torch.ones(1, 2), targets, hidden=seen)
        assert as_lists(found) == ([0, 1], [0, 0])

    @pytest.mark.parametrize("width", [1, 8])
    def test_constant_scores_are_all_tied(self, width: int):
        targets = Targets(torch.arange(3), torch.tensor([1, 50, 100]))
        found = catalogue_ranks(Scorer(torch.zeros(101, width), score_budget=50), torch.randn(3, width), targets)
        assert as_lists(found) == ([0, 0, 0], [99, 99, 99])

    @pytest.mark.parametrize("budget", [3 * 40, 10**6])
    @pytest.mark.parametrize("num_items", [100, 1003, 2047])
    def test_items_with_the_same_vector_are_tied_whatever_their_place(self, num_items: int, budget: int):
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(3, 50, generator=generator)
        vectors = torch.randn(1, 50, generator=generator).expand(num_items + 1, -1).contiguous()
        targets = Targets(torch.arange(3), torch.tensor([1, 50, num_items]))
        found = catalogue_ranks(Scorer(vectors, score_budget=budget), states, targets)
        assert as_lists(found) == ([0, 0, 0], [num_items - 1] * 3)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_real_valued_ranks_depend_neither_on_blocks_nor_on_batches(
        self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ):
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(9, 16, generator=generator).to(dtype)
        vectors = torch.randn(301, 16, generator=generator).to(dtype)
        items = torch.randint(1, 301, (9,), generator=generator)
        whole = catalogue_ranks(Scorer(vectors), states, Targets(torch.arange(9), items))
        monkeypatch.setattr(ranks_module, "CPU_BLOCK_SCORES", 9 * 37)
        blocks = catalogue_ranks(Scorer(vectors), states, Targets(torch.arange(9), items))
        alone = [
            catalogue_ranks(Scorer(vectors), states[row : row + 1], Targets(torch.zeros(1).long(), items[row, None]))
            for row in range(9)
        ]
        assert as_lists(blocks) == as_lists(whole)
        assert as_lists(whole) == tuple([int(getattr(found, name)) for found in alone] for name in ("better", "tied"))
        if dtype == torch.float32:
            scores = states.double() @ vectors.double().T
            above = (scores[:, 1:] > scores.gather(1, items.unsqueeze(1))).sum(1)
            assert whole.better.tolist() == above.tolist()

    def test_autocast_changes_nothing(self):
        generator = torch.Generator().manual_seed(0)
        states, scorer = (
            torch.randn(4, 8, generator=generator),
            Scorer(torch.randn(400, 8, generator=generator)),
        )
        targets = Targets(torch.arange(4), torch.tensor([1, 50, 200, 399]))
        expected = catalogue_ranks(scorer, states, targets)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert as_lists(catalogue_ranks(scorer, states, targets)) == as_lists(expected)


class TestCandidateRanks:
    @settings(deadline=None, max_examples=100)
    @given(SEEDS, st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), WRONG)
    def test_ranks_equal_numpys(self, seed: int, num_users: int, count: int, most_targets: int, wrong: str):
        problem = random_problem(seed, num_users, 12, most_targets)
        spoil(problem, wrong, seed)
        generator = torch.Generator().manual_seed(seed)
        # A candidate drawn twice counts twice; none is a target.
        others = [[item for item in range(1, 13) if item not in items] for items in problem.held_out]
        picks = torch.randint(0, 8, (num_users, count), generator=generator).tolist()
        candidates = [[others[row][pick] for pick in picks[row]] for row in range(num_users)]
        found = candidate_ranks(Scorer(problem.vectors), problem.states, problem.targets, torch.tensor(candidates))
        assert as_lists(found) == ranks_by_numpy(problem.scores(), problem.held_out, candidates)

    def test_all_candidates_rank_as_the_catalogue(self):
        generator = torch.Generator().manual_seed(0)
        states, vectors = torch.randn(6, 16, generator=generator), torch.randn(90, 16, generator=generator)
        vectors[40:60] = vectors[40]
        targets = Targets(torch.arange(6), torch.tensor([40, 41, 50, 3, 89, 1]))
        candidates = torch.stack(
            [torch.tensor([i for i in range(1, 90) if i != target]) for target in targets.item_ids.tolist()]
        )
        expected = catalogue_ranks(Scorer(vectors), states, targets)
        assert as_lists(candidate_ranks(Scorer(vectors), states, targets, candidates)) == as_lists(expected)
        assert expected.tied.tolist()[:3] == [19, 19, 19]


class LargestResult(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("targets_each", [1, 5])
def test_scores_of_all_users_for_the_whole_catalogue_are_never_held(targets_each: int):
    rows, num_items, budget = 64, 1000, 64 * 20
    states, vectors = torch.randn(rows, 2), torch.randn(num_items + 1, 2)
    seen = RaggedItems.from_rows([torch.tensor([row + 1, row + 2]) for row in range(rows)])
    users = torch.arange(rows).repeat_interleave(targets_each)
    items = torch.arange(rows * targets_each) + 1
    with LargestResult() as largest:
        catalogue_ranks(Scorer(vectors, score_budget=budget), states, Targets(users, items), hidden=seen)
    assert 0 < largest.elements <= max(budget, 2 * (num_items + 1))


def test_a_matrix_product_on_cpu_goes_by_parts_that_stay_in_its_cache():
    states, scorer = torch.randn(64, 2), Scorer(torch.randn(50_001, 2))
    with LargestResult() as largest:
        catalogue_ranks(scorer, states, Targets(torch.arange(64), torch.arange(64) + 1))
    assert largest.elements <= ranks_module.CPU_BLOCK_SCORES


def test_a_users_scores_are_computed_once_for_all_its_targets():
    problem, computed = random_problem(0, 4, 50, 8), []

    class Counting(Scorer):
        def score_chunk(self, states: Tensor, first: int, size: int) -> Tensor:
            computed.append(len(states) * size)
            return super().score_chunk(states, first, size)

    assert len(problem.targets.rows) > 8
    catalogue_ranks(Counting(problem.vectors, score_budget=80), problem.states, problem.targets)
    assert sum(computed) == 4 * 50


def test_a_million_items_take_less_than_512_mib():
    users, width, num_items = 128, 16, 10**6
    scorer = Scorer(torch.randn(num_items + 1, width))
    states = torch.randn(users, width)
    targets = Targets(torch.arange(users), torch.randint(1, num_items + 1, (users,)))
    seen = RaggedItems.from_rows([torch.randint(1, num_items + 1, (200,)) for _ in range(users)])
    small = Scorer(torch.randn(1000, width))
    catalogue_ranks(small, states, Targets(torch.arange(users), torch.ones(users).long()))
    taken = peak_bytes(lambda: catalogue_ranks(scorer, states, targets, hidden=seen), states.device)
    assert taken < 512 << 20
