from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from seqrec.encoders import state as streaming
from seqrec.encoders.state import State, StateFormat, encoder_digest
from seqrec.errors import InputError


class Encoder(nn.Module):
    """The least that a state can be of."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.zeros(width))

    def init_state(self, rows: int, window: int = 2) -> State:
        tensors = {
            "keys": torch.zeros(rows, window, self.width, dtype=torch.bfloat16),
            "count": torch.zeros(rows, dtype=torch.int64),
        }
        return State(tensors, encoder_digest(self))


def filled(state: State, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randint(0, 99, x.shape, generator=generator).to(x.dtype) for name, x in state.tensors.items()
    }
    return State(tensors, state.encoder)


def same(state: State, expected: State) -> bool:
    equal = [torch.equal(x, expected.tensors[name]) for name, x in state.tensors.items()]
    return state.encoder == expected.encoder and state.tensors.keys() == expected.tensors.keys() and all(equal)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def form(encoder: Encoder) -> StateFormat:
    return StateFormat(encoder, encoder.init_state(1))


def test_rows_are_gathered_in_order_and_with_repeats(encoder: Encoder):
    state = filled(encoder.init_state(4))
    for rows in ([2, 0, 2], torch.tensor([2, 0, 2])):
        picked = state.gather(rows)
        assert len(picked) == 3
        for name, x in picked.tensors.items():
            assert torch.equal(x, state.tensors[name][[2, 0, 2]])
    assert len(state.gather([])) == 0


@pytest.mark.parametrize("rows", [[4], [0, -1], [[0]]], ids=str)
def test_rows_that_are_not_there_are_refused(encoder: Encoder, rows: list):
    message = re.escape(f"rows={rows} must be a list of numbers from 0 to 3")
    with pytest.raises(InputError, match=message):
        encoder.init_state(4).gather(rows)


def test_stacking_is_the_inverse_of_gathering(encoder: Encoder):
    state = filled(encoder.init_state(3))
    assert same(State.stack([state.gather([0]), state.gather([1, 2])]), state)


def test_states_that_do_not_fit_are_not_stacked(encoder: Encoder):
    state = encoder.init_state(1)
    with pytest.raises(InputError, match="states is empty"):
        State.stack([])
    other_types = State({**state.tensors, "keys": state.tensors["keys"].float()}, state.encoder)
    for other in (Encoder(4).init_state(1), encoder.init_state(1, window=5), other_types, state.to("meta")):
        with pytest.raises(InputError, match=r"states\[1\] is of .*stack states of one model, on one device"):
            State.stack([state, other])
    with pytest.raises(InputError, match=r"states\[1\]"):
        State.stack([state, State(state.tensors, "Other")])


def test_moving_keeps_the_types(encoder: Encoder):
    moved = encoder.init_state(2).to("meta")
    assert {name: (x.device.type, x.dtype) for name, x in moved.tensors.items()} == {
        "keys": ("meta", torch.bfloat16),
        "count": ("meta", torch.int64),
    }


def test_a_row_has_a_known_size(encoder: Encoder, form: StateFormat):
    assert encoder.init_state(7).row_bytes == encoder.init_state(0).row_bytes == 2 * 3 * 2 + 8
    sizes = [len(form.to_bytes(encoder.init_state(rows))) for rows in (0, 1, 100)]
    assert sizes[1] - sizes[0] == 20
    assert sizes[2] - sizes[0] == 2000


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_bytes_bring_back_the_state(encoder: Encoder, form: StateFormat, rows: int):
    state = filled(encoder.init_state(rows))
    found = form.from_bytes(form.to_bytes(state))
    assert same(found, state)
    assert list(found.tensors) == list(state.tensors)
    assert form.from_bytes(form.to_bytes(state), device="meta").tensors["keys"].is_meta


def test_parts_of_larger_tensors_are_written_as_they_read(encoder: Encoder, form: StateFormat):
    state = filled(encoder.init_state(4, window=3))
    view = State({"keys": state.tensors["keys"][1:, 1:], "count": state.tensors["count"][1:]}, state.encoder)
    assert same(form.from_bytes(form.to_bytes(view)), view)


def test_a_state_read_back_can_be_written_to_without_touching_others(encoder: Encoder, form: StateFormat):
    data = form.to_bytes(filled(encoder.init_state(2)))
    first, second = form.from_bytes(data), form.from_bytes(data)
    first.tensors["count"].zero_()
    assert second.tensors["count"].any()
    assert same(form.from_bytes(data), second)


def test_every_cut_is_found(encoder: Encoder, form: StateFormat):
    data = form.to_bytes(filled(encoder.init_state(2)))
    for length in range(len(data)):
        with pytest.raises(InputError, match="data is no whole state"):
            form.from_bytes(data[:length])
    with pytest.raises(InputError, match="41 bytes follow the header, but 2 rows of 20 bytes are 40"):
        form.from_bytes(data + b"x")


def test_every_changed_byte_is_found(encoder: Encoder, form: StateFormat):
    data = form.to_bytes(filled(encoder.init_state(2)))
    for place in range(len(data)):
        for flipped in (1, 128):
            broken = bytearray(data)
            broken[place] ^= flipped
            with pytest.raises(InputError, match=r"make it again from the user's events"):
                form.from_bytes(bytes(broken))


@pytest.mark.parametrize(
    "header",
    [b"[1, 2]", b"{}", b'{"version": "0"}', b"[" * 100_000, b"\xff\xfe", b"null"],
    ids=lambda h: h[:8],
)
def test_a_header_of_other_things_is_refused(form: StateFormat, header: bytes):
    data = streaming.MAGIC + streaming.LENGTHS.pack(len(header)) + header + bytes(40)
    with pytest.raises(InputError, match="data is no whole state: its header"):
        form.from_bytes(data)


def test_retrained_weights_refuse_the_old_states(encoder: Encoder, form: StateFormat):
    data = form.to_bytes(encoder.init_state(1))
    with torch.no_grad():
        encoder.weight[1] += 1e-6
    later = StateFormat(encoder, encoder.init_state(1))
    with pytest.raises(InputError, match=r"made with encoder weights \w+, but the model has \w+; make it again"):
        later.from_bytes(data)


def test_another_version_of_the_library_is_refused(
    encoder: Encoder, form: StateFormat, monkeypatch: pytest.MonkeyPatch
):
    data = form.to_bytes(encoder.init_state(1))
    monkeypatch.setattr(streaming, "__version__", "9.9")
    with pytest.raises(InputError, match=r"made with library version .*, but the model has 9\.9"):
        StateFormat(encoder, encoder.init_state(1)).from_bytes(data)


def test_a_state_of_another_encoder_is_refused_both_ways(encoder: Encoder, form: StateFormat):
    other = Encoder(4)
    message = rf"made with encoder {encoder_digest(other)}, but the model has {encoder_digest(encoder)}"
    with pytest.raises(InputError, match=message):
        form.to_bytes(other.init_state(1))
    with pytest.raises(InputError, match=message):
        form.from_bytes(StateFormat(other, other.init_state(1)).to_bytes(other.init_state(1)))
    with pytest.raises(InputError, match=r"like is a state of Encoder-.*, but the encoder is Encoder-"):
        StateFormat(encoder, other.init_state(1))


def test_a_state_with_another_window_is_refused_both_ways(encoder: Encoder, form: StateFormat):
    other = encoder.init_state(1, window=5)
    message = re.escape(
        "made with tensors {'keys': ['bfloat16', [5, 3]]}, but the model has {'keys': ['bfloat16', [2, 3]]}"
    )
    with pytest.raises(InputError, match=message):
        form.to_bytes(other)
    with pytest.raises(InputError, match=message):
        form.from_bytes(StateFormat(encoder, other).to_bytes(other))


def test_the_digest_follows_the_arguments_and_not_the_weights():
    assert encoder_digest(Encoder(3)) == encoder_digest(Encoder(3)) != encoder_digest(Encoder(4))
    changed = Encoder(3)
    nn.init.ones_(changed.weight)
    assert encoder_digest(changed) == encoder_digest(Encoder(3))
