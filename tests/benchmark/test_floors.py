from __future__ import annotations

from typing import Any

import pytest
import torch

from seqrec import models
from seqrec.benchmark.floors import Rates, Work, floor_seconds, measure_rates, work_of
from seqrec.catalogue.table import ItemTable

B, L, D, V = 2, 10, 4, 50


def work(name: str, **options: Any) -> Work:
    with torch.device("meta"):
        model = getattr(models, name)(V - 1, d_model=D, max_length=L, **options)
    return work_of(model, B, L)


def test_the_work_of_sasrec_is_that_of_a_count_by_hand():
    found = work("SASRec", num_layers=1)
    # Queries, keys and values, the output, and two layers of width D; scores and mixtures of half of the pairs.
    products = 2 * B * L * (3 * D * D + D * D + 2 * D * D)
    attention = 2 * (2 * B * L * L * D) // 2
    assert found.flop == 3 * (products + attention)
    weights = V * D + L * D + 6 * D * D + 6 * D + 3 * 2 * D
    assert found.bytes == 4 * (2 * 5 * B * L * D + 3 * B * L * D + 8 * weights)


def test_a_gru_has_two_products_with_three_gates_each():
    assert work("GRU4Rec").flop == 3 * 2 * B * L * (2 * 3 * D * D)


def test_only_the_rows_of_the_batch_count_of_a_sparse_table():
    dense, sparse = (work("MambaRec", item_table=ItemTable(sparse=value)) for value in (False, True))
    assert sparse.flop == dense.flop
    assert dense.bytes - sparse.bytes == 0  # 60 events look up all 50 rows
    with torch.device("meta"):
        large = models.MambaRec(1_000_000, d_model=D, max_length=L, item_table=ItemTable(sparse=True))
    assert work_of(large, B, L).bytes - sparse.bytes == 4 * 8 * (3 * B * L - V) * D


def test_activations_of_half_the_size_move_half_the_bytes():
    with torch.device("meta"):
        model = models.MambaRec(V - 1, d_model=D, max_length=L, num_layers=1)
    full, half = (work_of(model, B, L, activation_bytes=size) for size in (4, 2))
    assert full.bytes - half.bytes == 2 * 5 * B * L * D
    assert full.flop == half.flop


def test_floors_are_work_over_rates():
    rates = Rates(copy=100.0, matmul={"fp32": 10.0, "bf16": 40.0}, launch_seconds=1e-6, graph_seconds=None)
    assert floor_seconds(Work(bytes=50, flop=20), rates, "fp32") == {"bytes": 0.5, "flop": 2.0}
    assert floor_seconds(Work(bytes=50, flop=20), rates, "bf16")["flop"] == 0.5


def test_rates_of_a_cpu_are_measured():
    rates = Rates(**measure_rates(device="cpu", scale=16))
    assert rates.copy > 1e7
    assert rates.matmul.keys() == {"fp32", "bf16"}
    assert 0 < rates.launch_seconds < 0.1
    assert rates.graph_seconds is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rates_of_a_gpu_are_measured():
    rates = Rates(**measure_rates(device="cuda", scale=8))
    assert rates.matmul["tf32"] > rates.matmul["fp32"] > 1e12
    assert rates.graph_seconds is not None
    assert rates.graph_seconds < rates.launch_seconds
