"""Programs to export: a recommender's full pass, its step, and its read-out, as functions of plain tensors.

Shapes: B batch, L events, D width, V rows of a table, W newest events that attention sees.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.encoders import SequenceEncoder
from seqrec.encoders.layers import Tensors, newest_events
from seqrec.inference.export.tables import ExportedTable
from seqrec.models import SequentialRecommender
from seqrec.models.masked_items import followed_by_mask
from seqrec.models.streaming import NEWEST_TIME
from seqrec.ops.export import scan_events
from seqrec.types import History

# Sizes of the traced example; others may be used later. torch would take 0 and 1 for constants, and equal sizes for
# one axis.
BATCH, LENGTH, WINDOW, ROWS = 2, 3, 5, 7
# Prefixes of the recurrent state's names, as an input and as an output.
STATE, NEXT_STATE = "state.", "next_state."
# Prefix of the names of inputs that are columns of events.
COLUMN = "column."

Axes = dict[str, dict[int, str]]


@dataclass(frozen=True)
class Program:
    """A function of named tensors.

    Attributes:
        name: "full", "step" or "ask".
        module: Takes the inputs in order and returns a tuple of the outputs.
        inputs: Example of each input.
        axes: Input -> axis -> name, for axes with a free size.
        outputs: Names.
        longest: Most events per row; None is any number.
    """

    name: str
    module: nn.Module
    inputs: Tensors
    axes: Axes
    outputs: list[str]
    longest: int | None = None

    def shape(self, name: str) -> list[int | str]:
        """Return the shape of an input, with the names of free axes."""
        return [self.axes[name].get(axis, size) for axis, size in enumerate(self.inputs[name].shape)]


class _Pass(nn.Module):
    """Base of the programs: embeds events and reads states out as `SequentialRecommender` does.

    Args:
        model: A model in evaluation mode; its weights are shared.
        inside: Tables inside the program; others are inputs.
        names: Names of the inputs, in order.
        top_k: Best items that the program returns; 0 is none.
    """

    def __init__(
        self, model: SequentialRecommender, inside: Mapping[str, Tensor], names: list[str], top_k: int
    ) -> None:
        super().__init__()
        self.encoder = traceable(model.encoder)
        self.positions, self.event_time, self.read_out = model.positions, model.event_time, model.read_out
        self.columns, self.mask = model.column_embedding, model.mask
        self.inside = list(inside)
        for name, table in inside.items():
            self.register_buffer(name, table)
        self.names, self.top_k, self.to_scoring_space = names, top_k, model.to_scoring_space

    def given(self, tensors: tuple[Tensor, ...]) -> Tensors:
        """Return all inputs and tables by name."""
        return dict(zip(self.names, tensors, strict=True)) | {x: self.get_buffer(x) for x in self.inside}

    def embedded(self, history: History, given: Tensors) -> Tensor:
        """Return events (B, L, D)."""
        width = self.encoder.d_model
        x: Tensor = F.embedding(history.item_ids, given["items"])[..., :width] * width**0.5
        if self.mask is not None:
            x = x + self.mask(history.item_ids)
        if self.positions is not None:
            x = x + self.positions(history)
        if self.event_time is not None:
            x = x + self.event_time(history.timestamps, history.times_before)
        if self.columns is not None:
            x = x + self.columns(history.features, history.item_ids.shape)
        if "user_ids" in given:
            x = x + F.embedding(given["user_ids"], given["users"]).unsqueeze(1)
        return x

    def results(self, states: Tensor, newest: Tensor | None, given: Tensors) -> tuple[Tensor, ...]:
        """Return the program's outputs for states (B, D) after newest events at times (B,): states as asked at the
        request's time, scaled, and the best items if `top_k` is set.
        """
        if self.read_out is not None:
            states = self.read_out(states, newest, given["request_times"])
        states = self.to_scoring_space(states)
        if not self.top_k:
            return (states,)
        candidates = given.get("candidates", given["items"])
        scores, columns = F.linear(states, candidates[1:]).topk(self.top_k, dim=1)
        return states, columns + 1, scores


class _FullPass(_Pass):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = self.given(tensors)
        features = features_of(given)
        history = History(given["item_ids"], given["lengths"], given.get("timestamps"), features=features)
        if self.mask is not None:
            history = followed_by_mask(history)
        states = self.encoder(self.embedded(history, given), history)
        times = history.timestamps
        newest = None if times is None else newest_events(times, history.lengths)
        return self.results(newest_events(states, history.lengths), newest, given)


class _OneStep(_Pass):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = self.given(tensors)
        before = {name.removeprefix(STATE): x for name, x in given.items() if name.startswith(STATE)}
        item_ids, newest = given["item_ids"].unsqueeze(1), given.get("timestamps")
        times = None if newest is None else newest.unsqueeze(1)
        features = {name: values.unsqueeze(1) for name, values in features_of(given).items()}
        history = History(item_ids, torch.ones_like(given["item_ids"]), times, before.get(NEWEST_TIME), features)
        encoder_state = {name: x for name, x in before.items() if name != NEWEST_TIME}
        x, read = self.embedded(history, given), self.encoder.times_of(history)
        states, after = self.encoder.advance(x, None, encoder_state, *read)
        if newest is not None:
            # A copy, as ONNX does not allow an input as an output.
            after = {**after, NEWEST_TIME: newest.clone()}
        own = (states.squeeze(1),) if self.read_out is not None else ()
        return (*self.results(states.squeeze(1), newest, given), *own, *(after[name] for name in before))


class _Ask(_Pass):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = self.given(tensors)
        return self.results(given["event_states"], given["newest_times"], given)


def full_pass(
    model: SequentialRecommender,
    tables: Mapping[str, ExportedTable],
    inside: Mapping[str, Tensor],
    top_k: int,
) -> Program:
    """Return the program from histories to the state after each one's newest event."""
    inputs, axes = _outer_inputs(tables, inside)
    longest = None if model.positions is None else model.positions.max_length
    length = LENGTH if longest is None else min(LENGTH, longest)
    inputs["item_ids"] = torch.ones(BATCH, length, dtype=torch.int64)
    # A single position is a constant for torch.
    axes["item_ids"] = {0: "batch", 1: "length"} if length > 1 else {0: "batch"}
    inputs["lengths"], axes["lengths"] = torch.full((BATCH,), length), {0: "batch"}
    if model.event_time is not None:
        inputs["timestamps"], axes["timestamps"] = torch.ones(BATCH, length, dtype=torch.int64), axes["item_ids"]
    _add_columns(inputs, axes, model, BATCH, length)
    _add_users(inputs, axes, model)
    _add_request(inputs, axes, model)
    module = _FullPass(model, inside, list(inputs), top_k)
    return Program("full", module, inputs, axes, _outputs(top_k), longest)


def one_step(
    model: SequentialRecommender,
    tables: Mapping[str, ExportedTable],
    inside: Mapping[str, Tensor],
    top_k: int,
) -> Program:
    """Return the program from one more event per user and the recurrent state to the next state.

    The size of the given state is the window of attention. An `InputError` refuses encoders that cannot be streamed.
    """
    inputs, axes = _outer_inputs(tables, inside)
    inputs["item_ids"], axes["item_ids"] = torch.ones(BATCH, dtype=torch.int64), {0: "batch"}
    if model.event_time is not None:
        inputs["timestamps"], axes["timestamps"] = torch.ones(BATCH, dtype=torch.int64), {0: "batch"}
    _add_columns(inputs, axes, model, BATCH)
    _add_users(inputs, axes, model)
    _add_request(inputs, axes, model)
    like = model.items.weight.new_empty(0, dtype=torch.float32)
    state = model.encoder.zero_state(BATCH, WINDOW, like)
    other = model.encoder.zero_state(BATCH, WINDOW + 1, like)
    for name, x in state.items():
        inputs[STATE + name] = x
        windows = [axis for axis, size in enumerate(x.shape) if size != other[name].shape[axis]]
        axes[STATE + name] = {0: "batch"} | dict.fromkeys(windows, "window")
    outputs = [*_outputs(top_k), *(["event_states"] if model.read_out is not None else [])]
    if model.event_time is not None:
        state = {**state, NEWEST_TIME: torch.ones(BATCH, dtype=torch.int64)}
        inputs[STATE + NEWEST_TIME], axes[STATE + NEWEST_TIME] = state[NEWEST_TIME], {0: "batch"}
    module = _OneStep(model, inside, list(inputs), top_k)
    return Program("step", module, inputs, axes, [*outputs, *(NEXT_STATE + name for name in state)])


def ask(
    model: SequentialRecommender,
    tables: Mapping[str, ExportedTable],
    inside: Mapping[str, Tensor],
    top_k: int,
) -> Program:
    """Return the program from a stored state and the time of a request to the state as asked then."""
    inputs, axes = _outer_inputs({} if not top_k else tables, inside)
    inputs["event_states"], axes["event_states"] = torch.zeros(BATCH, model.encoder.d_model), {0: "batch"}
    inputs["newest_times"], axes["newest_times"] = torch.ones(BATCH, dtype=torch.int64), {0: "batch"}
    _add_request(inputs, axes, model)
    return Program("ask", _Ask(model, inside, list(inputs), top_k), inputs, axes, _outputs(top_k))


def _outer_inputs(tables: Mapping[str, ExportedTable], inside: Mapping[str, Tensor]) -> tuple[Tensors, Axes]:
    # The consumer multiplies with candidates that are outside.
    outer = [table for name, table in tables.items() if name not in inside and name != "candidates"]
    inputs = {table.name: torch.zeros(ROWS, table.width) for table in outer}
    return inputs, {table.name: {0: f"num_{table.name}"} for table in outer}


def _add_users(inputs: Tensors, axes: Axes, model: SequentialRecommender) -> None:
    if model.users is not None:
        inputs["user_ids"], axes["user_ids"] = torch.ones(BATCH, dtype=torch.int64), {0: "batch"}


def features_of(given: Tensors) -> Tensors:
    """Return the columns of events among a program's inputs, by their own names."""
    return {name.removeprefix(COLUMN): x for name, x in given.items() if name.startswith(COLUMN)}


def _add_columns(inputs: Tensors, axes: Axes, model: SequentialRecommender, *shape: int) -> None:
    if model.column_embedding is not None:
        for name, x in model.column_embedding.missing(*shape).items():
            inputs[COLUMN + name], axes[COLUMN + name] = x, axes["item_ids"]


def _add_request(inputs: Tensors, axes: Axes, model: SequentialRecommender) -> None:
    if model.read_out is not None:
        inputs["request_times"], axes["request_times"] = torch.full((BATCH,), 2), {0: "batch"}


def _outputs(top_k: int) -> list[str]:
    return ["states", "best_items", "best_scores"] if top_k else ["states"]


class ScannedGRU(nn.Module):
    """A layer of `nn.GRU` as one operator for any number of events; torch would unroll the traced number of them.

    Args:
        gru: One layer, one direction, batch first; its weights are shared.
    """

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        assert (gru.num_layers, gru.batch_first, gru.bidirectional) == (1, True, False)
        self.of_event = _linear(gru.weight_ih_l0, gru.bias_ih_l0)
        self.of_state = _linear(gru.weight_hh_l0, gru.bias_hh_l0)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return outputs (B, L, D) for x (B, L, D), and the last hidden state (1, B, D), as `nn.GRU`."""
        projected = self.of_event(x)
        # Scan can use outer tensors, but no layers.
        weight, bias = self.of_state.weight, self.of_state.bias
        state = x.new_zeros(x.shape[0], self.of_state.in_features) if hidden is None else hidden[0]

        def event(state: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            reset, update, new = now[0].chunk(3, dim=-1)
            reset_h, update_h, new_h = F.linear(state, weight, bias).chunk(3, dim=-1)
            candidate = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
            kept = torch.sigmoid(update + update_h)
            state = candidate + kept * (state - candidate)
            return state, state.clone()

        if isinstance(x.shape[1], int) and x.shape[1] == 1:
            last, out = event(state, (projected[:, 0],))
            return out.unsqueeze(1), last.unsqueeze(0)
        outputs, last = scan_events(event, state, (projected,))
        return outputs, last.unsqueeze(0)


def _linear(weight: object, bias: object) -> nn.Linear:
    """Return a linear layer that shares another layer's weights."""
    assert isinstance(weight, nn.Parameter)
    assert isinstance(bias, nn.Parameter)
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = weight, bias
    return layer


def traceable(encoder: SequenceEncoder) -> SequenceEncoder:
    """Return a copy that shares the weights and can be exported; the encoder is unchanged."""
    shared = [*encoder.parameters(), *encoder.buffers()]
    copied = copy.deepcopy(encoder, {id(x): x for x in shared})
    for parent in copied.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.GRU):
                setattr(parent, name, ScannedGRU(child))
    return copied
