from __future__ import annotations

import math

import pytest
import torch

from seqrec.encoders.layers import LearnedPositions, rotary_turns, rotate
from seqrec.errors import InputError
from seqrec.types import History


def history(lengths: list[int], padded_to: int) -> History:
    return History(torch.ones(len(lengths), padded_to, dtype=torch.int64), torch.tensor(lengths))


def test_positions_count_back_from_the_newest_event():
    layer = LearnedPositions(5, 3)
    vectors = layer(history([4, 2], 4))
    assert torch.equal(vectors[0], layer.weight[[3, 2, 1, 0]])
    assert torch.equal(vectors[1, :2], layer.weight[[1, 0]])


def test_a_history_and_its_suffix_share_the_vectors_of_shared_events():
    vectors = LearnedPositions(8, 3)(history([8, 5], 8))
    assert torch.equal(vectors[0, 3:], vectors[1, :5])


def test_padding_does_not_move_positions():
    layer = LearnedPositions(9, 3)
    assert torch.equal(layer(history([3], 3)), layer(history([3], 9))[:, :3])


def test_as_many_events_as_max_length_fit():
    assert LearnedPositions(4, 3)(history([4], 4)).shape == (1, 4, 3)


def test_one_event_more_than_max_length_is_refused():
    with pytest.raises(InputError, match=r"a history of 5 events exceeds max_length=4.*positions: false"):
        LearnedPositions(4, 3)(history([5], 5))


def textbook(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """RoFormer's equation 15 by complex numbers in double precision; channel i pairs with i + W / 2."""
    width = x.shape[-1]
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2).double() / width)
    pairs = torch.complex(*x.double().chunk(2, -1))
    turned = pairs * torch.polar(torch.ones(()).double(), positions.double().unsqueeze(-1) * frequencies)
    return torch.cat([turned.real, turned.imag], -1)


@pytest.mark.parametrize("width", [2, 6, 64])
def test_rotation_is_the_papers(width: int):
    x = torch.randn(3, 40, width)
    positions = torch.arange(40) * 100
    found = rotate(x, positions, rotary_turns(width))
    assert found.dtype == x.dtype
    torch.testing.assert_close(found.double(), textbook(x, positions), rtol=0, atol=2e-5)


def test_products_depend_on_distances_alone_also_far_out():
    query, key = torch.randn(2, 5, 32).unbind(0)
    turns = rotary_turns(32)

    def products(shift: int) -> torch.Tensor:
        positions = torch.arange(5) + shift
        return rotate(query, positions, turns) @ rotate(key, positions, turns).T

    for shift in (1, 1_000, 1_000_000_000):
        torch.testing.assert_close(products(shift), products(0), rtol=0, atol=2e-5)
    assert not torch.allclose(products(0), query @ key.T, atol=1e-2)


def test_lengths_and_the_event_at_position_0_stay():
    x = torch.randn(4, 7, 10)
    found = rotate(x, torch.arange(7), rotary_turns(10))
    torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(found[:, 0], x[:, 0])


def test_rows_may_stand_at_positions_of_their_own():
    x, turns = torch.randn(2, 3, 4, 8), rotary_turns(8)
    positions = torch.tensor([[0, 1, 2, 3], [7, 8, 9, 10]])
    found = rotate(x, positions.unsqueeze(1), turns)
    for row in range(2):
        assert torch.equal(found[row], rotate(x[row], positions[row], turns))


def test_low_precision_inputs_are_turned_in_float32():
    x, positions, turns = torch.randn(1, 50, 8).bfloat16(), torch.arange(50), rotary_turns(8)
    found = rotate(x, positions, turns)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rotate(x.float(), positions, turns).bfloat16())


def test_the_fastest_pair_turns_by_one_radian_and_the_slowest_by_nearly_the_base():
    turns = rotary_turns(64).double() / 2**32 * math.tau
    assert turns[0].item() == pytest.approx(1, abs=1e-8)
    assert turns[-1].item() == pytest.approx(10_000 ** (-62 / 64), rel=1e-4)
