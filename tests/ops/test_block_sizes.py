"""Block sizes of the Triton kernels: which row of the table decides, and how others are measured."""

from __future__ import annotations

import pytest
import torch
from gpu import block_sizes as command

from seqrec.ops import block_sizes as module
from seqrec.ops.block_sizes import TABLE, BlockRow, block_sizes

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch):
    rows = (
        BlockRow("", 0, {"events": 1, "warps": 4}),
        BlockRow("", 65, {"events": 2}),
        BlockRow("NVIDIA H", 0, {"warps": 8}),
        BlockRow("NVIDIA H200", 65, {"events": 3}),
    )
    monkeypatch.setitem(TABLE, "dropout", rows)


@pytest.mark.parametrize(
    ("card", "width", "expected"),
    [
        ("Tesla T4", 64, {"events": 1, "warps": 4}),
        ("Tesla T4", 65, {"events": 2, "warps": 4}),
        ("NVIDIA H100 80GB HBM3", 65, {"events": 2, "warps": 8}),
        ("NVIDIA H200", 64, {"events": 1, "warps": 8}),
        ("NVIDIA H200", 300, {"events": 3, "warps": 8}),
    ],
)
def test_the_last_row_of_card_and_width_decides(
    table: None, monkeypatch: pytest.MonkeyPatch, card: str, width: int, expected: dict[str, int]
):
    monkeypatch.setattr(module, "_name", lambda index: card)
    assert block_sizes("dropout", GPU, width) == expected


def test_a_cpu_has_the_rows_of_any_card(table: None):
    assert block_sizes("dropout", CPU, 100) == {"events": 2, "warps": 4}


@pytest.mark.parametrize("op", list(TABLE))
def test_rows_of_any_card_and_width_come_first_and_have_all_sizes(op: str):
    general = [not row.card and not row.width for row in TABLE[op]]
    assert general == sorted(general, reverse=True)
    assert general[0]
    names = {name for row, is_general in zip(TABLE[op], general, strict=True) if is_general for name in row.sizes}
    assert all(row.sizes.keys() <= names for row in TABLE[op])


def test_the_command_tries_sizes_that_ops_have():
    assert command.CHOICES.keys() == TABLE.keys()
    for op in TABLE:
        assert command.CHOICES[op].keys() <= block_sizes(op, CPU).keys()


def test_the_command_computes_with_the_table_and_with_each_choice(table: None, monkeypatch: pytest.MonkeyPatch):
    found: list[dict[str, int]] = []
    step = lambda: found.append(dict(block_sizes("dropout", CPU, 100)))  # noqa: E731
    monkeypatch.setattr(command, "problem", lambda *given: step)
    monkeypatch.setattr(command, "CHOICES", {"dropout": {"events": (5, 6)}})
    command.measure("dropout", 100, torch.float32, "cpu", rounds=1)
    assert [each["events"] for each in found] == [2, 2, 5, 5, 6, 6]
    assert {each["warps"] for each in found} == {4}
    assert block_sizes("dropout", CPU, 100) == {"events": 2, "warps": 4}


@pytest.mark.kernels
@pytest.mark.parametrize("op", list(TABLE))
def test_the_command_measures_each_op(monkeypatch: pytest.MonkeyPatch, op: str):
    names = command.CHOICES[op]
    monkeypatch.setattr(command, "combinations", lambda op: [{name: sizes[0] for name, sizes in names.items()}])
    found = command.measure(op, 3, torch.float32, "cpu", events=2, rounds=1)
    assert not found["failed"]
    assert found["choices"][0]["seconds"] > 0
    assert found["seconds of table"] > 0


def test_a_row_is_printed_if_a_choice_is_clearly_faster_than_the_table():
    choices = [{"seconds": 0.9, "warps": 8}, {"seconds": 1.2, "warps": 4}]
    found = {"op": "ssd", "width": 32, "seconds of table": 1.0, "choices": choices}
    assert command.row_of(found, "NVIDIA H100") == '"ssd": BlockRow("NVIDIA H100", 32, {"warps": 8})'
    assert command.row_of(found | {"seconds of table": 0.91}, "NVIDIA H100") is None
    assert command.row_of(found | {"seconds of table": None}, "NVIDIA H100") is not None
    assert command.row_of(found | {"choices": []}, "NVIDIA H100") is None
