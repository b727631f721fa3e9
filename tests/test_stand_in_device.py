"""What the stand-in for a GPU counts, and that branches for a GPU compute what those for a CPU do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu.stand_in_device import Counts, StandInDevice
from graphed_runs import make_model, varied
from torch import Tensor, nn

from seqrec.catalogue.table import ItemTable
from seqrec.training.losses import BCE
from seqrec.training.negatives import UniformNegatives
from seqrec.training.optim import LazyAdamOptimizer, RowOptimizer, RowwiseAdagradOptimizer

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]
COUNT = (
    "import json, sys; from tests.gpu import count; print(json.dumps(list(count.measure(**json.loads(sys.argv[1])))))"
)


def counted(step: Any) -> Counts:
    device = StandInDevice()
    with device.active():
        device.counts = Counts()
        step()
        found, device.counts = device.counts, None
    return found


def test_operations_of_both_passes_are_counted_with_their_bytes_but_no_views():
    x = torch.ones(10, 4, requires_grad=True)
    found = counted(lambda: (x.view(4, 10) * 2).sum().backward())
    # The gradient of a sum is a view, and that of the product is another product.
    assert found.ops == {"mul": 2, "sum": 1, "ones_like": 1}
    assert found.bytes == (160 + 160) + (160 + 4) + (4 + 4) + (4 + 160)
    assert found.launches == 4
    assert not found.waits


def test_what_is_on_the_cpu_is_not_counted_and_what_crosses_is_a_copy():
    device = StandInDevice()
    weight = torch.ones(3)
    with device.active():
        device.counts = Counts()
        here = torch.arange(3) + 1
        assert (here.device.type, weight.device.type) == ("cpu", "cuda")
        assert (here.is_cuda, weight.is_cuda) == (False, True)
        there = here.to("cuda:0")
        assert there.is_cuda
        assert torch.zeros(2, device=weight.device).is_cuda
        assert not (there * weight).cpu().is_cuda
    assert device.counts.ops == {"mul": 1, "zeros": 1}
    assert device.counts.copies == 2
    # The copy to the CPU.
    assert device.counts.waits == {"copy": 1}
    assert not weight.is_cuda


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: torch.sparse_coo_tensor(torch.zeros_like(x)[None].long(), x, check_invariants=False).coalesce(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique_consecutive(),
        lambda x: x.index_put((x > 0,), x[0]),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: torch.zeros(5).copy_(x),
    ],
)
def test_sizes_and_values_that_python_reads_make_it_wait(step: Any):
    x = torch.arange(5.0)
    assert counted(lambda: step(x)).waits.total() == 1
    assert not counted(lambda: x.index_select(0, torch.arange(3, device=x.device))).waits
    assert not counted(lambda: x.to("cpu", non_blocking=True)).waits
    assert not counted(lambda: torch.zeros(5).copy_(x, non_blocking=True)).waits


def train(place: StandInDevice | None, steps: int = 6) -> tuple[list[float], dict[str, Tensor], Counts | None]:
    """Losses and weights of a model of attention, with a row-sparse table and negatives that users have not seen."""
    model = make_model("SASRec", BCE(UniformNegatives(3)), item_table=ItemTable(sparse=True), dropout=0.0)
    losses: list[float] = []

    def run() -> Counts | None:
        torch.manual_seed(1)
        optimizer, counts = model.optimizer.build(model), None
        for batch in varied(steps):
            if place is not None:
                place.counts = counts = Counts()
            loss = model.loss_of_batch(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if place is not None:
                place.counts = None
            losses.append(float(loss.detach()))
        return counts

    if place is None:
        return losses, model.state_dict(), run()
    with place.active():
        counts = run()
    return losses, model.state_dict(), counts


def test_branches_for_a_gpu_train_as_those_for_a_cpu():
    losses, weights, counts = train(StandInDevice())
    expected, expected_weights, _ = train(None)
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, weight in weights.items():
        # Adam makes steps of what rounding leaves of the gradients of keys' biases, which are 0.
        near = 1e-3 if name.endswith("in_projection.bias") else 1e-6
        torch.testing.assert_close(weight, expected_weights[name], rtol=1e-4, atol=near, msg=name)
    assert counts is not None
    # The events with a target, and the items that users have seen, but not the rows of the table.
    assert counts.waits == {"nonzero": 1, "_unique2": 1, "index": 1}
    assert counts.ops["_fused_adam_"] == 1


def adam(table: Tensor) -> RowOptimizer:
    return LazyAdamOptimizer([table], lr=0.05, betas=(0.9, 0.98), stochastic_rounding=False)


def adagrad(table: Tensor) -> RowOptimizer:
    return RowwiseAdagradOptimizer([table], lr=0.05, stochastic_rounding=False)


@pytest.mark.parametrize("make", [adam, adagrad])
@pytest.mark.parametrize(("dtype", "waits"), [(torch.float32, 0), (torch.float64, 1), (torch.bfloat16, 1)])
def test_rows_are_updated_as_on_a_cpu_and_float32_without_waiting(make: Any, dtype: torch.dtype, waits: int):
    generator = torch.Generator().manual_seed(0)
    places = [torch.randint(1, 12, (1, 40), generator=generator) for _ in range(5)]
    values = [torch.randn(40, 3, generator=generator).to(dtype) for _ in places]
    start = torch.randn(20, 3, generator=generator).to(dtype)
    tables = [nn.Parameter(start.clone()) for _ in range(2)]

    def train_table(table: nn.Parameter) -> None:
        optimizer = make(table)
        for place, value in zip(places, values, strict=True):
            table.grad = torch.sparse_coo_tensor(place, value, (20, 3), check_invariants=False)
            optimizer.step()

    found = counted(lambda: train_table(tables[0]))
    assert found.waits.total() == waits * len(places)
    train_table(tables[1])
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-5, atol=1e-6)
    assert torch.equal(tables[0][12:], start[12:])


def test_under_deterministic_algorithms_distinct_rows_are_summed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    table = nn.Parameter(torch.zeros(5, 2))

    def step() -> None:
        table.grad = torch.sparse_coo_tensor(torch.tensor([[2, 2]]), torch.ones(2, 2), (5, 2), check_invariants=False)
        adam(table).step()

    assert counted(step).waits == {"_coalesce": 1}


def test_distinct_rows_of_a_large_gradient_are_summed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("seqrec.training.optim.row_optimizer.MOST_WRITTEN", 4)
    table = nn.Parameter(torch.zeros(5, 2))

    def step(rows: int) -> None:
        places, values = torch.full((1, rows), 2), torch.ones(rows, 2)
        table.grad = torch.sparse_coo_tensor(places, values, (5, 2), check_invariants=False)
        adam(table).step()

    assert not counted(lambda: step(2)).waits
    assert counted(lambda: step(3)).waits == {"_coalesce": 1}


@pytest.mark.process
def test_graphs_are_launched_instead_of_operations():
    shape = {"batch_size": 4, "length": 40, "num_items": 600_000}
    given = {
        "encoders": ["MambaRec"],
        "ways": [False, True],
        "shape": shape,
        "d_model": 8,
        "num_layers": 1,
        "dropout": 0.2,
    }
    command = [sys.executable, "-W", "ignore", "-c", COUNT, json.dumps(given)]
    # Interpreted kernels run on the CPU alone.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    eager, graphs = json.loads(done.stdout.splitlines()[-1])
    assert (eager["graphs"], graphs["graphs"]) == (0, 2)
    assert graphs["launches"] < eager["launches"] / 2
    # What the eager step launches is in the graphs, but for the optimiser and the loss's own copies.
    assert graphs["in_graphs"] > eager["launches"] / 2
    assert eager["kernels"]["conv_outputs"] == 1
    assert graphs["waits"] == {}
    assert eager["bytes"] > eager["least"] > 0
    assert graphs["seconds"] > 0
