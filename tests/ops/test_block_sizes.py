"""Block sizes of the Triton kernels: which row of the table decides, and how one is replaced to measure it."""

from __future__ import annotations

import pytest
import torch

from seqrec.errors import InputError
from seqrec.ops import block_sizes as module
from seqrec.ops.block_sizes import TABLE, BlockRow, block_sizes, forced_block_sizes

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


def test_sizes_can_be_replaced_for_a_measurement_and_come_back(table: None):
    with forced_block_sizes("dropout", warps=1):
        assert block_sizes("dropout", CPU) == {"events": 1, "warps": 1}
    assert block_sizes("dropout", CPU) == {"events": 1, "warps": 4}
    with pytest.raises(InputError, match=r"^dropout has no block size 'wraps'; known: events, warps$"):  # noqa: SIM117
        with forced_block_sizes("dropout", wraps=1):
            pass


@pytest.mark.parametrize("op", list(TABLE))
def test_rows_of_any_card_and_width_come_first_and_have_all_sizes(op: str):
    general = [not row.card and not row.width for row in TABLE[op]]
    assert general == sorted(general, reverse=True)
    assert general[0]
    names = {name for row, is_general in zip(TABLE[op], general, strict=True) if is_general for name in row.sizes}
    assert all(row.sizes.keys() <= names for row in TABLE[op])
