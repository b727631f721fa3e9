from __future__ import annotations

import pytest
import torch

from seqrec.encoders.layers import LearnedPositions
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
