"""Comparison of written programs with the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from seqrec.data.schema import CATEGORICAL
from seqrec.encoders.event_time import UNITS
from seqrec.encoders.layers import Tensors, newest_events
from seqrec.inference.export.formats import ExportError, Run
from seqrec.inference.export.programs import COLUMN, NEXT_STATE, STATE
from seqrec.models import SequentialRecommender
from seqrec.types import History, RaggedItems, SequenceBatch

# Largest difference between a program and the model, relative to the largest number if that is above 1.
TOLERANCE = 1e-4
# Batch sizes and lengths of histories, none of them the traced example's; cut to the model's number of positions.
FULL_SHAPES = ((1, 1), (4, 1), (1, 2), (3, 17), (5, 130))
STEP_BATCHES = (1, 4)
STEPS = 12


def check_full_pass(model: SequentialRecommender, run: Run, longest: int | None) -> float:
    """Return the largest relative difference from the model on random histories of several shapes.

    Raises:
        ExportError: if it is above `TOLERANCE`, or an output is not finite.
    """
    worst = 0.0
    for batch, length in FULL_SHAPES:
        length = min(length, longest or length)
        generator = torch.Generator().manual_seed(length)
        lengths = torch.randint(1, length + 1, (batch,), generator=generator)
        lengths[0] = length
        valid = torch.arange(length) < lengths.unsqueeze(1)
        item_ids = _random_items(model, (batch, length), generator) * valid
        user_ids = _users(model, batch)
        seen = RaggedItems.from_rows([item_ids[0, :1]] * batch)
        timestamps = (_first_time(model) + _random_times((batch, length), generator).cumsum(1)) * valid
        newest = newest_events(timestamps, lengths)
        at = newest + _random_times((batch,), generator)
        features = _random_features(model, (batch, length), generator)
        events = SequenceBatch(History(item_ids, lengths, timestamps, features=features), None, user_ids, seen)
        states = model.last_states(events.asked_at(at))
        given = {"item_ids": item_ids, "lengths": lengths, "user_ids": user_ids}
        given |= {"timestamps": timestamps, "request_times": at}
        given |= {COLUMN + name: values for name, values in features.items()}
        place = f"the full pass of {batch} histories of up to {length} events"
        worst = max(worst, _compare(model, run(given), {"states": states}, place))
    return worst


def check_one_step(model: SequentialRecommender, run: Run) -> float:
    """Return the largest relative difference from the model over some events, each from the program's last state.

    Raises:
        ExportError: if it is above `TOLERANCE`, or an output is not finite.
    """
    worst = 0.0
    for batch in STEP_BATCHES:
        generator = torch.Generator().manual_seed(batch)
        state = model.init_state(batch)
        recurrent = {STATE + name: x for name, x in state.tensors.items()}
        timestamps = torch.full((batch,), _first_time(model))
        for event in range(STEPS):
            item_ids, user_ids = _random_items(model, (batch,), generator), _users(model, batch)
            timestamps = timestamps + _random_times((batch,), generator)
            at = timestamps + _random_times((batch,), generator)
            features = _random_features(model, (batch,), generator)
            states, state = model.step(item_ids, state, user_ids, timestamps, features)
            given = {"item_ids": item_ids, "user_ids": user_ids, "timestamps": timestamps, "request_times": at}
            given |= {COLUMN + name: values for name, values in features.items()}
            outputs = run({**given, **recurrent})
            expected = {NEXT_STATE + name: x for name, x in state.tensors.items()}
            if model.read_out is not None:
                expected["event_states"] = states
            expected["states"] = model.to_scoring_space(model.at_request(states, timestamps, at))
            place = f"step {event + 1} of {batch} users"
            worst = max(worst, _compare(model, outputs, expected, place))
            recurrent = {STATE + name: outputs[NEXT_STATE + name] for name in state.tensors}
    return worst


def check_ask(model: SequentialRecommender, run: Run) -> float:
    """Return the largest relative difference from the model of random states that are asked at random times.

    Raises:
        ExportError: if it is above `TOLERANCE`, or an output is not finite.
    """
    worst = 0.0
    for batch in STEP_BATCHES:
        generator = torch.Generator().manual_seed(batch)
        states = torch.randn(batch, model.encoder.d_model, generator=generator)
        newest = _first_time(model) + _random_times((batch,), generator)
        at = newest + _random_times((batch,), generator)
        expected = {"states": model.to_scoring_space(model.at_request(states, newest, at))}
        given = {"event_states": states, "newest_times": newest, "request_times": at}
        worst = max(worst, _compare(model, run(given), expected, f"{batch} states asked"))
    return worst


def _compare(model: SequentialRecommender, outputs: Tensors, expected: Mapping[str, Tensor], place: str) -> float:
    if "best_scores" in outputs:
        # Equal scores may come in any order, so scores are compared, and the scores of the returned items.
        top_k, num_items = outputs["best_items"].shape[1], model.items.num_items
        scores = model.scorer().score_chunk(expected["states"], 1, num_items)
        named = scores.gather(1, outputs["best_items"] - 1)
        outputs = {**outputs, "scores of best_items": named}
        best = scores.topk(top_k, dim=1).values
        expected = {**expected, "best_scores": best, "scores of best_items": best}
    worst = 0.0
    for name, x in expected.items():
        got = outputs[name]
        if got.shape != x.shape:
            raise ExportError(f"{name} of {place} has shape {tuple(got.shape)}, the model's {tuple(x.shape)}")
        scale = max(1.0, float(x.abs().max())) if x.numel() else 1.0
        difference = float((got.double() - x.double()).abs().max()) / scale if x.numel() else 0.0
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{name} of {place} differs from the model's by {difference:.2g} of its size, above "
                f"{TOLERANCE:g}; nothing was written"
            )
        worst = max(worst, difference)
    return worst


def _random_items(model: SequentialRecommender, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(1, model.items.num_items + 1, shape, generator=generator)


def _random_features(
    model: SequentialRecommender, shape: tuple[int, ...], generator: torch.Generator
) -> dict[str, Tensor]:
    """Return columns of events, also missing ones, by name."""
    features = {}
    for column in model.event_columns:
        if column.kind == CATEGORICAL:
            features[column.name] = torch.randint(0, column.num_codes, shape, generator=generator)
        else:
            size = (*shape, column.width) if column.width else shape
            features[column.name] = torch.randn(size, generator=generator)
    return features


def _first_time(model: SequentialRecommender) -> int:
    """Return a timestamp of this age, which has more digits than float32."""
    return 1_600_000_000 * (1 if model.time is None else UNITS[model.time.unit])


def _random_times(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return gaps from 0 to some weeks, most of them short."""
    return (2.0 ** (torch.rand(shape, generator=generator) * 21)).long() - 1


def _users(model: SequentialRecommender, batch: int) -> Tensor:
    """Return user ids, the unknown user first."""
    return torch.arange(batch) % (1 if model.users is None else model.users.num_items + 1)
