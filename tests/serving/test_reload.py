"""The model of another checkpoint takes over while clients send: no request is dropped, and sessions continue."""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from served_models import ITEMS, NUM_ITEMS, best_of, error_of, items_of, reading_model, serving
from served_models import model as served_model

from seqrec import EventTime
from seqrec.data.event_columns import EventColumn
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import CheckpointError, InputError
from seqrec.inference.sessions import Event, InMemoryStore, SessionRecommender, SQLiteStore, StateStore
from seqrec.models import MambaRec, Popularity, Recommender, SequentialRecommender
from seqrec.serving import Limits
from seqrec.serving.app import create_app
from seqrec.serving.served import Loaded, check_successor

CLIENTS = 16


def model(seed: int = 0, items: Sequence[int] = ITEMS) -> MambaRec:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = MambaRec(len(items), d_model=8, d_state=4, max_length=30, positions=False)
        torch.nn.init.normal_(made.items.weight.detach()[1:])
    made.item_vocabulary = Vocabulary(np.array(items), any_order=True)
    return made.eval()


class Checkpoints:
    """Loads models in turn, the last one again and again; an error is raised instead."""

    def __init__(self, store: StateStore, *makes: Callable[[], Recommender]) -> None:
        self.store, self.waiting, self.number = store, list(makes), 0
        self.models: list[weakref.ref[Recommender]] = []

    def __call__(self, before: Recommender | None) -> Loaded:
        made = (self.waiting.pop(0) if len(self.waiting) > 1 else self.waiting[0])()
        self.number += 1
        if before is not None:
            check_successor(before, made, self.store)
        self.models.append(weakref.ref(made))
        return Loaded(SessionRecommender(made, self.store), checkpoint=f"{self.number}.ckpt")


@contextmanager
def reloading(load: Checkpoints, **given: Any) -> Iterator[httpx.Client]:
    app = create_app(**load(None)._asdict(), load=load, limits=Limits(ready_seconds=60), **given)
    with serving(app) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


def reload(client: httpx.Client) -> float:
    response = client.post("/reload", json={})
    assert response.status_code == 200, response.text
    return response.json()["waited_seconds"]


def reference(made: SequentialRecommender, events: dict[str, list[int]]) -> SessionRecommender:
    sessions = SessionRecommender(made)
    for user, items in events.items():
        sessions.observe_many([Event(user, item) for item in items])
    return sessions


def send(url: str, user: str, kept: list[int], over: threading.Event, status: list[int]) -> None:
    """Observe and ask until it is over; notes the acknowledged events, and the status of each answer."""
    step = int(user[1:])
    with httpx.Client(base_url=url, timeout=120) as client:
        while not over.is_set() or not kept:
            item = ITEMS[(7 * step) % NUM_ITEMS]
            step += 1
            observed = client.post("/observe", json={"user": user, "item": item})
            if observed.status_code == 200:
                kept.append(item)
            asked = client.post("/recommend", json={"user": user, "k": 3})
            of_history = client.post("/recommend", json={"history": [item], "k": 3})
            status += [
                observed.status_code,
                asked.status_code,
                of_history.status_code,
                client.get("/ready").status_code,
            ]


@pytest.mark.parametrize(
    ("durable", "swaps"),
    [(False, 5), pytest.param(False, 20, marks=pytest.mark.slow), pytest.param(True, 20, marks=pytest.mark.slow)],
)
def test_clients_during_swaps_lose_nothing_and_then_meet_the_new_model(durable: bool, swaps: int, tmp_path: Path):
    store = SQLiteStore(tmp_path / "s.db") if durable else InMemoryStore(keep_events=10_000)
    # Two checkpoints in turn.
    load = Checkpoints(store, *((lambda seed=number % 2: model(seed)) for number in range(swaps + 1)))
    kept: dict[str, list[int]] = {f"u{number}": [] for number in range(CLIENTS)}
    over, status, waited = threading.Event(), [], []
    with reloading(load, demo=True) as client:
        with ThreadPoolExecutor(CLIENTS) as pool:
            sent = [pool.submit(send, str(client.base_url), user, own, over, status) for user, own in kept.items()]
            try:
                for number in range(2, swaps + 2):
                    time.sleep(0.05)
                    waited.append(reload(client))
                    assert client.get("/health").json()["checkpoint"] == f"{number}.ckpt"
            finally:
                over.set()
            for each in sent:
                each.result()
        assert set(status) == {200}
        print(f"{len(status):,} requests answered; waited {np.median(waited):.4f} s, at most {max(waited):.4f} s")
        last = model(swaps % 2)
        expected = reference(last, kept)
        for user, items in kept.items():
            events = SessionRecommender(model(swaps % 2), store).kept_events(user)
            assert events is not None
            assert list(events.items) == items
            assert items_of(client.post("/recommend", json={"user": user})) == best_of(expected, user)
        found = client.post("/recommend", json={"history": [30, 70]})
        assert items_of(found) == best_of(reference(last, {"x": [30, 70]}), "x")
        found = client.post("/similar", json={"item": 30, "k": 1})
        assert items_of(found) == [10 * int(last.similar_items(torch.tensor([3]), 1).item_ids)]
        assert client.get("/health").json()["reloads"] == swaps
        # The page explains by the new model, too.
        shown = client.post("/demo/user", json={"user": "u0", "k": 1}).json()
        assert shown["explained"]["score"] == pytest.approx(shown["items"][0]["score"], rel=1e-3)
    store.close()


def test_health_says_which_checkpoint_answers_and_the_share_of_sessions_made_again():
    load = Checkpoints(InMemoryStore(keep_events=9), model, lambda: model(1), lambda: model(1))
    with reloading(load) as client:
        for user in ("ada", "bob", "eve", "joe"):
            client.post("/observe", json={"user": user, "item": 30})

        def state() -> tuple[str, int, float]:
            health = client.get("/health").json()
            lines = [line for line in client.get("/metrics").text.splitlines() if "seqrec_rebuilt_share " in line]
            assert float(lines[-1].split()[1]) == health["rebuilt_share"]
            return health["checkpoint"], health["reloads"], health["rebuilt_share"]

        assert state() == ("1.ckpt", 0, 1)
        reload(client)
        assert state() == ("2.ckpt", 1, 0)
        assert client.post("/recommend", json={"user": "bob"}).status_code == 200
        assert state() == ("2.ckpt", 1, 0.25)
        # The same weights continue all sessions that are theirs.
        reload(client)
        assert state() == ("3.ckpt", 2, 1)


def test_a_grown_catalogue_takes_over_and_can_be_taken_back():
    further = [*ITEMS, 420, 7]
    load = Checkpoints(InMemoryStore(keep_events=9), model, lambda: model(1, further), model)
    with reloading(load) as client:
        client.post("/observe", json={"user": "ada", "item": 30})
        error_of(client.post("/observe", json={"user": "ada", "item": 7}), 422)
        reload(client)
        assert client.post("/observe", json={"user": "ada", "item": 7}).status_code == 200
        expected = reference(model(1, further), {"ada": [30, 7]})
        assert items_of(client.post("/recommend", json={"user": "ada"})) == best_of(expected, "ada")
        assert client.get("/health").json()["items"] == len(further)
        reload(client)
        # The new item's event is kept, but the old model does not know it.
        assert items_of(client.post("/recommend", json={"user": "ada"})) == best_of(
            reference(model(), {"ada": [30]}), "ada"
        )


def raising(error: Exception) -> Callable[[], Recommender]:
    def make() -> Recommender:
        raise error

    return make


@pytest.mark.parametrize(
    ("bad", "status", "message"),
    [
        (raising(CheckpointError("x.ckpt is damaged")), 422, "x.ckpt is damaged"),
        (raising(MemoryError("of 9 GiB")), 503, "does not fit into memory, next to the one that answers: of 9 GiB"),
        (raising(KeyError("x")), 500, "the server failed; see its log"),
        (lambda: model(1, [*ITEMS[:5], 7, *ITEMS[5:]]), 422, "41 items are not the 40 items of the one that answers"),
        (lambda: model(1, ITEMS[:-1]), 422, "has 39 items, and requests may ask for 40; .* or with --max_k 39"),
    ],
)
def test_after_a_failed_reload_the_model_before_answers(bad: Any, status: int, message: str):
    with reloading(Checkpoints(InMemoryStore(keep_events=9), model, bad)) as client:
        client.post("/observe", json={"user": "ada", "item": 30})
        reason = error_of(client.post("/reload", json={}), status)
        assert re.search(message, reason), reason
        assert items_of(client.post("/recommend", json={"user": "ada"})) == best_of(
            reference(model(), {"ada": [30]}), "ada"
        )
        assert client.get("/health").json()["reloads"] == 0


def test_a_reload_takes_no_arguments_and_needs_the_token():
    with reloading(Checkpoints(InMemoryStore(keep_events=9), model), token="a-token-of-some-length") as client:
        error_of(client.post("/reload", json={}), 401)
        client.headers["Authorization"] = "Bearer a-token-of-some-length"
        assert "ckpt: Extra inputs" in error_of(client.post("/reload", json={"ckpt": "other.ckpt"}), 422)
        reload(client)
    with serving(create_app(SessionRecommender(served_model()))) as url:
        error_of(httpx.post(f"{url}/reload", json={}), 404)


def test_a_successor_continues_sessions_from_the_events_that_are_kept():
    store = InMemoryStore(keep_events=9)
    tab, numeric = EventColumn("tab", "categorical", values=["home"]), EventColumn("tab", "numeric", std=2.0)
    with_tab = reading_model(MambaRec, [], event_columns=[tab])
    for made, message in (
        (with_tab, "reads the column 'tab' of events, which are not kept"),
        (reading_model(MambaRec, [], time=EventTime(gap="buckets")), "reads times of events"),
    ):
        with pytest.raises(InputError, match=message):
            check_successor(model(), made, store)
        check_successor(made, made, store)
    with pytest.raises(InputError, match="reads the column 'tab'"):
        check_successor(with_tab, reading_model(MambaRec, [], event_columns=[numeric]), store)
    with pytest.raises(InputError, match=r"sessions\.keep_events=0: another model makes sessions again"):
        check_successor(model(), model(1), InMemoryStore())
    popular = Popularity(NUM_ITEMS)
    popular.item_vocabulary = Vocabulary(np.array(ITEMS))
    check_successor(model(), popular, store)


def test_requests_are_answered_while_a_checkpoint_is_loaded_and_a_second_reload_is_refused():
    begun, go = threading.Event(), threading.Event()

    def slow() -> Recommender:
        begun.set()
        assert go.wait(60)
        return model(1)

    load = Checkpoints(InMemoryStore(keep_events=9), model, slow)
    with reloading(load) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(reload, client)
        assert begun.wait(60)
        assert "is being loaded already" in error_of(httpx.post(f"{client.base_url}/reload", json={}, timeout=60), 409)
        assert httpx.post(f"{client.base_url}/observe", json={"user": 1, "item": 30}, timeout=60).status_code == 200
        go.set()
        first.result()
        assert client.get("/health").json()["reloads"] == 1


def test_the_weights_of_the_model_before_are_released():
    load = Checkpoints(InMemoryStore(keep_events=9), model, lambda: model(1))
    with reloading(load) as client:
        (first,) = (ref() for ref in load.models)
        assert first is not None
        reload(client)
        # FastAPI keeps the functions of its routes, but these do not keep the model.
        assert {weight.device.type for weight in first.parameters()} == {"meta"}
        assert client.post("/recommend", json={"history": [30]}).status_code == 200
