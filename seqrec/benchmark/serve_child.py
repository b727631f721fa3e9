"""Servers that `benchmark serve` measures, each in a process of its own: `python -m seqrec.benchmark.serve_child`.

The one argument is JSON: `kind` ("serve" or "bare"), and for "serve" `items`, `d_model`, `num_layers`, `sessions` (a
file) and `batch_wait_ms`. The process prints its address when it accepts requests, and ends at SIGTERM.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Response

from seqrec.data.vocabulary import Vocabulary
from seqrec.inference.sessions import SessionRecommender, SQLiteStore
from seqrec.models import MambaRec
from seqrec.serving import Limits
from seqrec.serving.app import create_app
from seqrec.serving.server import Server, bind, url_of


def bare_app() -> FastAPI:
    """Return an application with one route, which does nothing."""
    app = FastAPI()

    @app.post("/nothing")
    async def nothing() -> Response:
        return Response(b"{}", media_type="application/json")

    return app


def recommender(settings: dict[str, Any]) -> SessionRecommender:
    """Return sessions on disk of a MambaRec with random weights."""
    torch.manual_seed(0)
    model = MambaRec(
        settings["items"],
        d_model=settings["d_model"],
        num_layers=settings["num_layers"],
        max_length=200,
        positions=False,
    )
    torch.nn.init.normal_(model.items.weight.detach()[1:], std=0.1)
    model.item_vocabulary = Vocabulary(np.arange(1, settings["items"] + 1))
    return SessionRecommender(model, SQLiteStore(settings["sessions"]))


def main() -> None:
    """Serve until SIGTERM."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    limits = Limits(batch_wait_ms=settings.get("batch_wait_ms", Limits.batch_wait_ms))

    with bind("127.0.0.1", 0) as listener:

        def ready() -> None:
            gc.collect()
            gc.freeze()
            print(url_of(listener), flush=True)

        if settings["kind"] == "bare":
            Server(bare_app(), limits=limits, ready=ready).run(sockets=[listener])
            return
        with recommender(settings) as sessions:
            Server(create_app(sessions, limits=limits), limits=limits, ready=ready).run(sockets=[listener])


if __name__ == "__main__":
    main()
