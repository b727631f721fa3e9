"""Explain a score by the contribution of each event of the history. L events, D width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from seqrec.catalogue.histories import read_histories
from seqrec.catalogue.recommend import RecommendingModel, evaluating, item_ids_of, looked_up
from seqrec.catalogue.table import ItemEmbedding
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError, check_at_least
from seqrec.types import History

if TYPE_CHECKING:
    import polars

Method = Literal["leave_one_out", "gradient_x_input"]
# Longer histories are explained by a gradient: leaving each event out encodes as many histories.
LEFT_OUT_EVENTS = 256


@dataclass(frozen=True)
class Explanation:
    """Contributions of events to an item's score; see `SequentialRecommender.explain`.

    Attributes:
        item: The item, as it was given.
        item_ids: Items of the L events that the score depends on, oldest first, as they were given.
        contributions: (L,) on the CPU, one per event; above 0 if the event raises the score.
        score: Score of the item after all these events.
        baseline: Score after as many events with zero item vectors, which is the part that positions, times, columns
            and the user account for. No encoder has a state before the first event, so there is no score of an empty
            history.
        method: How contributions were computed.

    Example:
        >>> import torch
        >>> from seqrec import History, SASRec
        >>> model = SASRec(num_items=20, d_model=8, max_length=10)
        >>> history = History(item_ids=torch.tensor([[3, 7, 9]]), lengths=torch.tensor([3]))
        >>> explanation = model.explain(history, item=5)
        >>> explanation.item_ids, explanation.contributions.shape
        ([3, 7, 9], torch.Size([3]))
    """

    item: Any
    item_ids: list[Any]
    contributions: Tensor
    score: float
    baseline: float
    method: Method


class ExplainableModel(RecommendingModel, Protocol):
    """The part of a model around an encoder that an explanation uses; every `SequentialRecommender` has it.

    `users` is None if the model has no vectors of users.
    """

    items: ItemEmbedding
    users: ItemEmbedding | None

    def newest_states(
        self, x: Tensor, history: History, user_ids: Tensor | None, *, at: Tensor | None = None, stream: bool = False
    ) -> Tensor:
        """Return the (B, D) states after the newest events of scaled item vectors (B, L, D), as asked at `at` (B,)."""


# Scores (B,) of the item for embedded items (B, L, D) of the events at a (B, L) index.
_Score = Callable[[Tensor, Tensor], Tensor]


def method_for(num_events: int) -> Method:
    """Return the exact method for histories of up to `LEFT_OUT_EVENTS`, and the cheap one for longer ones."""
    return "leave_one_out" if num_events <= LEFT_OUT_EVENTS else "gradient_x_input"


def explain(
    model: ExplainableModel,
    history: Sequence[Any] | History | polars.DataFrame,
    item: Any,
    *,
    method: Method = "leave_one_out",
    stream: bool = False,
    user: Any = None,
    batch_size: int = 64,
    at: int | datetime | None = None,
) -> Explanation:
    """Return how much each event of a history contributes to the score of an item.

    - "leave_one_out": the drop in score if the event is removed; newer events then move up by one place. Exact,
      at the cost of encoding L histories. Contributions do not add up to anything: if two events carry the same
      information, neither may matter alone. For a single event it is the score minus the baseline.
    - "gradient_x_input": the score's gradient by the event's item vector, times that vector; one pass forward
      and back. Contributions add up to the score minus the baseline only if the score is linear in the events;
      otherwise they describe small changes of scale. Layer norms hide scale, so contributions may be far smaller
      than the score.

    Args:
        model: The model; the function is its method.
        history: The log's item ids, oldest first; unknown ones are dropped with a warning. Or a frame of one user, as
            `Recommender.recommend` takes it, which has times too. Or a `History` of one row, and then all ids are
            internal ones.
        item: The item to explain.
        method: As above.
        stream: Whether to explain the score of a stream over all events (`init_state`, then `step`) instead of
            the score of the newest `max_length` events in one pass.
        user: The user, for models with user embeddings; None and unknown users have none.
        batch_size: Histories encoded at a time.
        at: When the recommendation is asked for, for a model that reads it; see `Recommender.recommend`.

    Raises:
        InputError: if the item is not in the catalogue, the history has no known item, the model does not know
            the log's ids, the method does not exist, or the model cannot be streamed.
    """
    methods = {"leave_one_out": _leave_one_out, "gradient_x_input": _gradient_x_input}
    if method not in methods:
        raise InputError(f"method={method!r} must be one of {', '.join(methods)}")
    check_at_least(1, batch_size=batch_size)
    vocabulary = None if isinstance(history, History) else item_ids_of(model)
    if isinstance(history, (str, bytes)):
        raise InputError(f"history={history!r} must be a list of item ids, as in [{history!r}]")
    if isinstance(history, History) and len(history.item_ids) != 1:
        raise InputError(f"history has {len(history.item_ids)} rows; give one, such as row 0 of each tensor")
    # Read here, so that warnings of unknown items point at the caller.
    block, _ = read_histories(model, [history] if isinstance(history, Sequence) else history)
    if len(block) != 1:
        raise InputError(f"history is a frame of {len(block)} users; give one")
    length = len(block.item_ids) if stream else int(model.hparams["max_length"])
    ((_, batch),) = block.batches(length, batch_size=1)
    events = batch.history.to(model.device)
    asked_at = model.request_timestamp(at)
    item_id = _item(model, item, vocabulary)
    user_id = _user(model, user, internal=vocabulary is None)
    with evaluating(model):
        vectors = model.items(events.item_ids[0]) * model.items.d_model**0.5
        target = model.scorer().vectors(torch.tensor(item_id, device=model.device))
        score = _scores(model, events, target, user_id, stream, asked_at)
        every = torch.arange(len(vectors), device=model.device).unsqueeze(0)
        whole = float(score(vectors.unsqueeze(0), every))
        baseline = float(score(torch.zeros_like(vectors).unsqueeze(0), every))
        contributions = methods[method](score, vectors, whole, baseline, batch_size)
    own = events.item_ids[0].cpu()
    item_ids = own if vocabulary is None else vocabulary.external_ids(own.numpy())
    named = item_ids if isinstance(item_ids, list) else item_ids.tolist()
    return Explanation(item, named, contributions.cpu(), whole, baseline, method)


def _scores(
    model: ExplainableModel,
    events: History,
    target: Tensor,
    user_id: int,
    stream: bool,
    asked_at: int | None,
) -> _Score:
    """Return the score as a function of embedded items, for events of one row."""

    def score(vectors: Tensor, index: Tensor) -> Tensor:
        batch, length = index.shape
        lengths = torch.full((batch,), length, device=index.device)
        times = None if events.timestamps is None else events.timestamps[0][index]
        features = {name: values[0][index] for name, values in (events.features or {}).items()}
        history = History(events.item_ids[0][index], lengths, times, features=features or None)
        user_ids = torch.full((batch,), user_id, device=index.device)
        at = None if asked_at is None else torch.full_like(user_ids, asked_at)
        states = model.newest_states(vectors, history, user_ids, at=at, stream=stream)
        return (states.to(target.dtype) * target).sum(-1)

    return score


def _leave_one_out(score: _Score, vectors: Tensor, whole: float, baseline: float, batch_size: int) -> Tensor:
    length = len(vectors)
    if length == 1:
        return torch.tensor([whole - baseline])
    rest = torch.arange(length - 1, device=vectors.device)
    without = []
    for left_out in torch.split(torch.arange(length, device=vectors.device), batch_size):
        index = rest + (rest >= left_out.unsqueeze(1))
        without.append(score(vectors[index], index))
    return whole - torch.cat(without)


def _gradient_x_input(score: _Score, vectors: Tensor, whole: float, baseline: float, batch_size: int) -> Tensor:
    every = torch.arange(len(vectors), device=vectors.device).unsqueeze(0)
    # cuDNN has no backward of recurrences in evaluation mode.
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        leaf = vectors.unsqueeze(0).requires_grad_()
        (gradient,) = torch.autograd.grad(score(leaf, every).sum(), leaf)
    return (gradient[0] * vectors).sum(-1)


def _item(model: ExplainableModel, item: Any, vocabulary: Vocabulary | None) -> int:
    if vocabulary is not None:
        item_id = int(looked_up(vocabulary, "item", [item])[0])
        if not item_id:
            raise InputError(f"item={item!r} is none of the log's {len(vocabulary)} items")
        return item_id
    if not isinstance(item, (int, np.integer)) or not 1 <= item <= model.items.num_items:
        raise InputError(f"item={item!r} must be an internal id, 1..{model.items.num_items}, as the history's are")
    return int(item)


def _user(model: ExplainableModel, user: Any, *, internal: bool) -> int:
    """Return the internal id, 0 for unknown."""
    if user is None or model.users is None:
        return 0
    if not internal:
        if model.user_vocabulary is None:
            raise InputError(
                f"user={user!r} is one of the log's ids, which the model does not know: load it with "
                "seqrec.inference.load, or set model.user_vocabulary = store.user_vocabulary"
            )
        return int(looked_up(model.user_vocabulary, "user", [user])[0])
    if not isinstance(user, (int, np.integer)) or not 0 <= user <= model.users.num_items:
        raise InputError(f"user={user!r} must be an internal id, 0..{model.users.num_items}")
    return int(user)
