"""The items with the best scores, dot products of states with a table, for each user.

B users, V rows of the table, D width, K best.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from seqrec.ops.backends import Backend, Backends
from seqrec.ops.compiled_library import call, compiled_backend, contiguous
from seqrec.types import SeenItems

__all__ = ["BEST_ITEMS_BACKENDS", "MOST_ITEMS", "best_items"]

# Users whose candidates a thread keeps at a time (`USERS` of `cpp/best_items.h`), and the most items of each, for
# which it has room.
TILE, MOST_ITEMS = 32, 1 << 12
LARGE_K = f"more than {MOST_ITEMS:,} items per user"


class BestItemsProblem(NamedTuple):
    """Input of a backend; see `best_items` for each argument."""

    states: Tensor
    vectors: Tensor
    k: int
    excluded: SeenItems | None = None
    blocked: Tensor | None = None
    allowed: Tensor | None = None


def best_items(
    states: Tensor,
    vectors: Tensor,
    k: int,
    *,
    excluded: SeenItems | None = None,
    blocked: Tensor | None = None,
    allowed: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return the scores and ids (B, K) of the best items, without gradients: best first, of equal ones the smaller id.

    Backends, in the order in which "auto" prefers them:

    - "cpp": compiled library, float32 on CPU, K up to 4,096. Scores of a few users and items at a time, of which it
      keeps those that may be among the K best. The same bits with any number of users or threads. Only allowed items
      are scored, where they lie: the time is proportional to their number, and their scores have the same bits.
    - "reference": plain torch, any device and dtype: sorts all scores.

    Args:
        states: (B, D).
        vectors: (V, D); row 0 is no item.
        k: Items per user, 1..V - 1.
        excluded: Items that each user does not get.
        blocked: (N,) int64, ascending: items that no user gets.
        allowed: (N,) int64, ascending: the only items that users get; None allows all.
        backend: A name above, or "auto": the environment variable SEQREC_BEST_ITEMS_BACKEND if set, else the first
            that can compute this.

    Returns:
        Scores and int64 ids, -inf and 0 if fewer than K items are left. Items with a score of NaN or -inf are left out.

    Raises:
        InputError: if the backend is unknown, missing or cannot compute this.

    Example:
        >>> import torch
        >>> from seqrec.ops.best_items import best_items
        >>> scores, item_ids = best_items(torch.tensor([[2.0]]), torch.tensor([[0.0], [1.0], [3.0], [3.0]]), k=2)
        >>> scores.tolist(), item_ids.tolist()
        ([[6.0, 6.0]], [[2, 3]])
    """
    if allowed is not None and blocked is not None:
        allowed, blocked = allowed[~torch.isin(allowed, blocked)], None
    problem = BestItemsProblem(states, vectors, k, excluded, blocked, allowed)
    given = (LARGE_K,) if k > MOST_ITEMS else ()
    with torch.no_grad(), torch.autocast(states.device.type, enabled=False):
        found: tuple[Tensor, Tensor] = BEST_ITEMS_BACKENDS.run(
            problem, backend, exported=best_items_reference, given=given, precise=False
        )
    return found


def best_items_reference(problem: BestItemsProblem) -> tuple[Tensor, Tensor]:
    """Compute `best_items` from the scores of all items."""
    states, vectors, k, excluded, blocked, allowed = problem
    scores = (states @ vectors.T).nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    scores[:, 0] = -torch.inf
    if excluded is not None:
        scores[excluded.rows, excluded.item_ids] = -torch.inf
    if blocked is not None:
        scores[:, blocked] = -torch.inf
    if allowed is not None:
        others = torch.ones(len(vectors), dtype=torch.bool, device=scores.device).index_fill_(0, allowed, False)
        scores.masked_fill_(others, -torch.inf)
    best, item_ids = scores.sort(dim=1, descending=True, stable=True)
    best, item_ids = best[:, :k], item_ids[:, :k]
    return best, item_ids.masked_fill(best == -torch.inf, 0)


def best_items_compiled(problem: BestItemsProblem) -> tuple[Tensor, Tensor]:
    """Compute `best_items` in float32 on CPU by the compiled library."""
    states, vectors, k, excluded, blocked, allowed = problem
    users, (rows, width) = len(states), vectors.shape
    if allowed is not None:
        rows, excluded = len(allowed), None if excluded is None else excluded.places_in(allowed)
    scores, item_ids = states.new_empty(users, k), torch.empty((users, k), dtype=torch.int64)
    tile = max(4, min(TILE, -(-users // torch.get_num_threads())))
    operands = contiguous(
        states=states,
        vectors=vectors,
        chosen=allowed,
        offsets=None if excluded is None else excluded.offsets,
        excluded=None if excluded is None else excluded.item_ids.to(torch.int64),
        blocked=blocked,
    )
    sizes = {"users": users, "rows": rows, "width": width, "first": int(allowed is None), "k": k, "tile": tile}
    sizes["num_blocked"] = 0 if blocked is None else len(blocked)
    if users:
        call("best_items", sizes, {**operands, "scores": scores, "item_ids": item_ids})
    return scores, item_ids


BEST_ITEMS_BACKENDS: Backends[Callable[[BestItemsProblem], tuple[Tensor, Tensor]]] = Backends(
    "best items",
    "SEQREC_BEST_ITEMS_BACKEND",
    [
        compiled_backend(best_items_compiled, frozenset({LARGE_K})),
        Backend("reference", best_items_reference, supports=lambda device, dtype: dtype.is_floating_point),
    ],
)
