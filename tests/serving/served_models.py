"""Models, applications and servers that tests of serving share."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import torch
from fastapi import FastAPI

from seqrec.data.vocabulary import Vocabulary
from seqrec.inference.sessions import SessionRecommender
from seqrec.models import MambaRec, SequentialRecommender
from seqrec.serving import Limits
from seqrec.serving.server import Server, bind, url_of

NUM_ITEMS = 40
# The log's ids of the items: 10, 20, .., 400.
ITEMS = [10 * item_id for item_id in range(1, NUM_ITEMS + 1)]


def model() -> MambaRec:
    """A model that streams, with random weights, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = MambaRec(NUM_ITEMS, d_model=16, d_state=4, max_length=30, positions=False)
        torch.nn.init.normal_(made.items.weight.detach()[1:])
    made.item_vocabulary = Vocabulary(np.array(ITEMS))
    made.user_vocabulary = Vocabulary(np.arange(1, 5))
    return made.eval()


def reading_model(kind: type[SequentialRecommender], parts: Sequence[str], **settings: Any) -> SequentialRecommender:
    """A model for which the items and what some parts read matter, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = kind(NUM_ITEMS, **{"d_model": 16, "max_length": 30, "positions": False} | settings)
        for part in (made.items, *(getattr(made, name) for name in parts)):
            assert part is not None
            for weight in part.parameters():
                torch.nn.init.normal_(weight)
    made.item_vocabulary = Vocabulary(np.array(ITEMS))
    return made.eval()


def best_of(recommender: SessionRecommender, user: int | str, k: int = 10) -> list[int | str]:
    return [scored.item for scored in recommender.recommend(user, k)]


def items_of(response: httpx.Response) -> list[int | str]:
    assert response.status_code == 200, response.text
    return [entry["item"] for entry in response.json()["items"]]


def error_of(response: httpx.Response, status: int) -> str:
    """The reason of an error, which is all that its body has."""
    assert response.status_code == status, (response.status_code, response.text)
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    return body["error"]


@contextmanager
def serving(app: FastAPI, limits: Limits | None = None) -> Iterator[str]:
    """The address of a real server of the application, in a thread."""
    ready = threading.Event()
    with bind("127.0.0.1", 0) as listener:
        server = Server(app, limits=limits or Limits(stop_seconds=5), ready=ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            assert ready.wait(20)
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
