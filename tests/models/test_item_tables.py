"""Row-sparse tables compute what dense ones do; separate output tables, biases, cosines and bfloat16 storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from loss_gradients import gradients

from seqrec.catalogue.scorer import Scorer
from seqrec.catalogue.table import SPARSE_FROM_ROWS, ItemEmbedding, ItemTable
from seqrec.errors import InputError
from seqrec.evaluation.target_ranks import Targets, catalogue_ranks
from seqrec.models import GRU4Rec, Recommender, SASRec, SequentialRecommender
from seqrec.training.losses import BCE, GBCE, FullSoftmax, InBatchSoftmax, Loss, SampledSoftmax
from seqrec.training.negatives import UniformNegatives
from seqrec.types import SequenceBatch

MakeBatch = Callable[..., SequenceBatch]
Save = Callable[[Recommender, Sequence[SequenceBatch]], Path]
NUM_ITEMS = 40
SAMPLED: dict[str, Callable[[], Loss]] = {
    "BCE": BCE,
    "GBCE": lambda: GBCE(UniformNegatives(7)),
    "SampledSoftmax": lambda: SampledSoftmax(UniformNegatives(9, exclude_seen=False)),
    "SampledSoftmax-shared": lambda: SampledSoftmax(UniformNegatives(9, exclude_seen=False, shared=True)),
    "InBatchSoftmax": InBatchSoftmax,
}
VARIANTS = {
    "tied": {},
    "separate": {"separate_output": True},
    "bias": {"bias": True},
    "cosine": {"temperature": 0.2},
    "all": {"separate_output": True, "bias": True, "temperature": 0.2},
}
every_variant = pytest.mark.parametrize("variant", list(VARIANTS))


def model(loss: Loss | None = None, *, width: int = 8, **table: object) -> SequentialRecommender:
    torch.manual_seed(0)
    made = GRU4Rec(NUM_ITEMS, d_model=width, dropout=0.0, max_length=9, loss=loss, item_table=ItemTable(**table))
    with torch.no_grad():  # biases that are not zero, so that a test sees them
        for table_ in (made.items, made.output_items):
            if table_ is not None:
                table_.weight[1:, width:] += torch.randn(NUM_ITEMS, table_.weight.shape[1] - width)
    return made.double()


@pytest.fixture
def batch(make_batch: MakeBatch) -> SequenceBatch:
    return make_batch([[3, 5, 5, 9], [7], [9, 3]], [11, 3, 40])


@every_variant
@pytest.mark.parametrize("early", [True, False], ids=["summed at lookup", "summed later"])
@pytest.mark.parametrize("name", list(SAMPLED))
def test_a_sparse_table_gets_the_dense_ones_gradients(
    name: str, variant: str, early: bool, batch: SequenceBatch, monkeypatch: pytest.MonkeyPatch
):
    for module in ("seqrec.catalogue.table", "seqrec.catalogue.scorer"):
        monkeypatch.setattr(f"{module}.sums_at_lookup", lambda device: early)
    dense_loss, dense = gradients(model(SAMPLED[name](), **VARIANTS[variant]), batch)
    sparse_loss, sparse = gradients(model(SAMPLED[name](), sparse=True, **VARIANTS[variant]), batch)
    torch.testing.assert_close(sparse_loss, dense_loss)
    tables = [key for key in sparse if sparse[key].is_sparse]
    assert tables == [key for key in dense if key.endswith("table.weight")]
    densified = {key: value.to_dense() if value.is_sparse else value for key, value in sparse.items()}
    torch.testing.assert_close(densified, dense)
    for key in tables:
        assert not densified[key][0].any()


def test_a_gradient_has_one_row_for_each_distinct_item_of_a_lookup(batch: SequenceBatch):
    made = model(SAMPLED["GBCE"](), sparse=True, separate_output=True)
    _, found = gradients(made, batch)
    history = set(batch.history.item_ids.flatten().tolist()) - {0}
    rows = found["items.table.weight"]._indices()[0].tolist()
    assert sorted(rows) == sorted(history)
    # Targets and negatives are two lookups.
    assert len(found["output_items.table.weight"]._indices()[0]) <= 2 * NUM_ITEMS


@every_variant
def test_training_and_ranking_see_the_same_scores(variant: str, batch: SequenceBatch):
    made = model(sparse=True, **VARIANTS[variant]).eval()
    states = made.last_states(batch)
    every_item = torch.arange(1, NUM_ITEMS + 1).expand(len(batch), -1)
    scores = made.scorer().score(states, every_item)
    ranks = catalogue_ranks(made.scorer(), states, Targets(torch.arange(len(batch)), batch.last_targets))
    own = scores.gather(1, batch.last_targets.unsqueeze(1) - 1)
    assert ranks.better.tolist() == (scores > own).sum(1).tolist()
    best = made.scorer().top_k(states, NUM_ITEMS, batch.user_ids)
    torch.testing.assert_close(best.scores, scores.sort(descending=True).values)
    assert torch.equal(best.item_ids, scores.argsort(descending=True) + 1)


def test_cosines_and_biases_are_what_they_are_called(batch: SequenceBatch):
    made = model(temperature=0.2, bias=True, separate_output=True).eval()
    events = made(batch.history)
    states = events[torch.arange(3), batch.history.lengths - 1]
    weight = made.output_items.weight
    expected = F.cosine_similarity(states.unsqueeze(1), weight[1:, :8].unsqueeze(0), dim=2) / 0.2 + weight[1:, 8]
    every_item = torch.arange(1, NUM_ITEMS + 1).expand(3, -1)
    torch.testing.assert_close(made.scorer().score(made.last_states(batch), every_item), expected)


def test_full_softmax_trains_cosines_with_biases(batch: SequenceBatch):
    made = model(FullSoftmax(), temperature=0.5, bias=True, width=4)
    loss, found = gradients(made, batch)
    states = made.to_scoring_space(made(batch.history))[batch.history.valid]
    scores = made.scorer().score(states, torch.arange(1, NUM_ITEMS + 1).expand(len(states), -1))
    expected = F.cross_entropy(scores, batch.targets[batch.history.valid] - 1)
    torch.testing.assert_close(loss, expected.detach())
    (wanted,) = torch.autograd.grad(expected, made.items.table.weight)
    torch.testing.assert_close(found["items.table.weight"], wanted)


def test_large_tables_are_sparse_unless_the_objective_reads_all_of_them():
    assert not ItemTable().is_sparse(SPARSE_FROM_ROWS - 1)
    assert ItemTable().is_sparse(SPARSE_FROM_ROWS)
    assert not ItemTable().is_sparse(SPARSE_FROM_ROWS, reads_all=True)
    assert not ItemTable(sparse=False).is_sparse(SPARSE_FROM_ROWS)
    assert ItemTable(sparse=True).is_sparse(2)


def test_full_softmax_refuses_a_sparse_table_of_candidates_only():
    with pytest.raises(InputError, match=r"sparse=True, but this objective scores the whole.*SampledSoftmax"):
        model(FullSoftmax(), sparse=True)
    with pytest.raises(InputError, match=r"sparse=True, but this objective"):
        model(FullSoftmax(), sparse=True, separate_output=True)


def test_an_objective_that_reads_all_vectors_of_a_sparse_table_is_told():
    weight = torch.nn.Parameter(torch.randn(5, 2))
    scorer = Scorer(weight, sparse=True)
    with pytest.raises(InputError, match=r"Scorer\.vectors or Scorer\.gather"):
        scorer.item_vectors  # noqa: B018
    with torch.no_grad():
        assert scorer.item_vectors is weight


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"std": -1.0}, "std"),
        ({"dtype": "int8"}, "dtype='int8'"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        ItemTable(**arguments)


@pytest.mark.parametrize("sparse", [False, True])
def test_bfloat16_tables_are_computed_with_in_float32(sparse: bool, batch: SequenceBatch):
    table = ItemEmbedding(NUM_ITEMS, 4, sparse=sparse, dtype=torch.bfloat16)
    out = table(batch.history.item_ids)
    assert out.dtype == torch.float32
    assert torch.equal(out, table.weight[batch.history.item_ids].float())
    scorer = Scorer(table.weight, sparse=sparse)
    states = torch.randn(3, 4)
    expected = states @ table.weight[1:].float().T
    found = scorer.score(states, torch.arange(1, NUM_ITEMS + 1).expand(3, -1))
    torch.testing.assert_close(found, expected)
    better = (expected > expected.gather(1, batch.last_targets.unsqueeze(1) - 1)).sum(1)
    ranks = catalogue_ranks(scorer, states, Targets(torch.arange(len(batch)), batch.last_targets))
    assert torch.equal(ranks.better, better)
    out.sum().backward()
    assert table.weight.grad.is_sparse == sparse


@pytest.mark.parametrize("variant", ["separate", "bias", "cosine", "all"])
def test_a_checkpoint_holds_the_tables_and_their_settings(variant: str, batches: Sequence[SequenceBatch], saved: Save):
    torch.manual_seed(0)
    settings = ItemTable(sparse=True, **VARIANTS[variant])
    made = SASRec(12, d_model=8, max_length=7, item_table=settings)
    loaded = SASRec.load_from_checkpoint(saved(made, batches))
    assert loaded.item_table == settings
    for name, weight in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
