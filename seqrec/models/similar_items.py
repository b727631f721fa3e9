"""The items most similar to items. B items of a batch, D width, K top-k."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

import numpy as np
import torch
from torch import Tensor

from seqrec.catalogue.candidates import Candidates, allowed_items
from seqrec.catalogue.histories import id_lists
from seqrec.catalogue.recommend import RecommendingModel, evaluating, item_ids_of, looked_up
from seqrec.catalogue.scorer import Scorer, check_top_k
from seqrec.errors import InputError, check_at_least
from seqrec.types import Recommendations, SeenItems

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ItemSimilarity(NamedTuple):
    """A similarity of items in the form of a scorer.

    Attributes:
        scorer: Its score of an item for the state of another is their similarity.
        states: Returns the states (B, D) of items (B,) int64 on the scorer's device.

    Example:
        >>> import torch
        >>> from seqrec.catalogue.scorer import Scorer
        >>> from seqrec.models.similar_items import ItemSimilarity
        >>> table = torch.tensor([[0.0, 0.0], [2.0, 0.0], [3.0, 3.0], [0.0, 1.0]])
        >>> best = ItemSimilarity.of_vectors(Scorer(table), 2).best(torch.tensor([1]), top_k=3)
        >>> best.item_ids.tolist()
        [[2, 3, 0]]
    """

    scorer: Scorer
    states: Callable[[Tensor], Tensor]

    @classmethod
    def of_vectors(cls, scorer: Scorer, d_model: int) -> ItemSimilarity:
        """Return the cosines of the first `d_model` columns of a scorer's vectors; the others are biases."""
        cosines = scorer.cosines(d_model)

        def states(item_ids: Tensor) -> Tensor:
            found = cosines.vectors(item_ids)
            found[:, d_model:] = 0
            return found

        return cls(cosines, states)

    def best(self, item_ids: Tensor, top_k: int, allowed: Tensor | None = None) -> Recommendations:
        """Return the most similar other items for each item (B,), on its device; `allowed` as of `Scorer.top_k`."""
        with torch.no_grad():
            own = SeenItems(item_ids, torch.arange(len(item_ids) + 1, device=item_ids.device))
            users = torch.zeros_like(item_ids)
            return self.scorer.top_k(self.states(item_ids), top_k, users, exclude=own, allowed=allowed)


class SimilarityModel(RecommendingModel, Protocol):
    """The part of a model that `similar_items` uses; every `Recommender` has it."""

    def item_similarity(self) -> ItemSimilarity:
        """Return the similarity."""


@overload
def similar_items(
    model: SimilarityModel,
    items: Tensor,
    top_k: int = ...,
    *,
    candidates: Candidates | Collection[Any] | None = ...,
    batch_size: int = ...,
) -> Recommendations: ...
@overload
def similar_items(
    model: SimilarityModel,
    items: Any,
    top_k: int = ...,
    *,
    candidates: Candidates | Collection[Any] | None = ...,
    batch_size: int = ...,
) -> list[Any]: ...
def similar_items(
    model: SimilarityModel,
    items: Any,
    top_k: int = 10,
    *,
    candidates: Candidates | Collection[Any] | None = None,
    batch_size: int = 128,
) -> Any:
    """Return the items most similar to an item, or to each of several, without the item itself; an exact search.

    Of a model with item vectors, similarity is the cosine of those that score (`ItemTable.separate_output`), whatever
    the temperature; biases do not count. A vector of zeros has the cosine 0 with all. `ItemKNN` has the similarity that
    it counted, 0 for items that are not neighbours, which come last. Other baselines have none: that an item often
    follows another, as `Markov` counts, does not make them similar.

    Each call copies the item table, as vectors of length 1, so ask for many items at once. A table that is sharded over
    processes is not copied, and is read as by `recommend`.

    Args:
        model: The model, of which this is a method.
        items: One of the log's item ids, a sequence of them, or a tensor (N,) of internal ids.
        top_k: Items for each.
        candidates: The only items that are found: `Candidates`, or the log's ids; None is all.
        batch_size: Items that are compared at a time.

    Returns:
        For an id, the log's ids of the most similar items, most similar first; for a sequence, such a list for each.
        For a tensor, internal ids and similarities (N, K) on the CPU, 0 and -inf if no more are allowed.

    Raises:
        InputError: if an item or a candidate is not in the catalogue, a number is out of range, or the model has no
            similarity of items, or does not know the log's ids.

    Example:
        >>> import torch
        >>> from seqrec import SASRec
        >>> from seqrec.data.vocabulary import Vocabulary
        >>> model = SASRec(num_items=3, d_model=2)
        >>> model.item_vocabulary = Vocabulary(["apple", "bread", "pear"])
        >>> _ = model.items.weight.data.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [2.0, 0.1]]))
        >>> model.similar_items("apple", top_k=2), model.similar_items(["bread"], top_k=1)
        (['pear', 'bread'], [['pear']])
    """
    similarity = model.item_similarity()
    num_items = similarity.scorer.num_items
    check_top_k(top_k, num_items)
    check_at_least(1, batch_size=batch_size)
    allowed = None if candidates is None else allowed_items(model, candidates).to(model.device)
    if isinstance(items, Tensor):
        _check_internal(items, num_items)
        item_ids = items.to("cpu", torch.int64)
    else:
        asked = [items] if isinstance(items, (str, int, np.integer)) else items
        item_ids = torch.from_numpy(_known_items(model, asked))
    with evaluating(model):
        parts = [similarity.best(some.to(model.device), top_k, allowed) for some in torch.split(item_ids, batch_size)]
    found = torch.cat([part.item_ids.cpu() for part in parts])
    if isinstance(items, Tensor):
        return Recommendations(found, torch.cat([part.scores.float().cpu() for part in parts]), item_ids)
    lists = id_lists(found, item_ids_of(model))
    return lists[0] if isinstance(items, (str, int, np.integer)) else lists


def _known_items(model: SimilarityModel, items: Sequence[Any]) -> NDArray[np.int64]:
    vocabulary = item_ids_of(model)
    found = looked_up(vocabulary, "items", items if isinstance(items, np.ndarray) else list(items))
    if len(unknown := np.flatnonzero(found == 0)):
        raise InputError(
            f"items has {items[int(unknown[0])]!r}, which is not in the catalogue of {len(vocabulary):,} items; leave "
            "it out"
        )
    return found


def _check_internal(items: Tensor, num_items: int) -> None:
    if items.dim() != 1 or items.is_floating_point():
        raise InputError(f"items of shape {tuple(items.shape)} and {items.dtype} must be internal ids (N,), integers")
    if len(items) and not 1 <= int(items.min()) <= int(items.max()) <= num_items:
        raise InputError(f"items has {int(items.min())}..{int(items.max())}, but internal ids are 1..{num_items}")
