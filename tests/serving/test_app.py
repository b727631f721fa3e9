"""The routes over HTTP: what they answer, and what they refuse."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from served_models import ITEMS, NUM_ITEMS, best_of, error_of, items_of, model, serving

from seqrec import __version__
from seqrec.errors import SessionStoreError
from seqrec.inference.sessions import Event, InMemoryStore, SessionRecommender, SQLiteStore
from seqrec.models import Popularity
from seqrec.serving import Limits
from seqrec.serving.app import create_app
from seqrec.serving.served import Health
from seqrec.serving.work import row_bytes_of

LIMITS = Limits(max_k=20, max_history=50, max_events=8, max_body_bytes=4096)
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def store() -> InMemoryStore:
    return InMemoryStore()


@pytest.fixture(scope="module")
def client(store: InMemoryStore) -> Iterator[httpx.Client]:
    recommender = SessionRecommender(model(), store)
    with serving(create_app(recommender, limits=LIMITS)) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture
def reference() -> SessionRecommender:
    """The same model without a server."""
    return SessionRecommender(model())


def observe(client: httpx.Client, *events: tuple[int | str, int]) -> None:
    body = [{"user": user, "item": item} for user, item in events]
    response = client.post("/observe", json=body[0] if len(body) == 1 else body)
    assert response.status_code == 200, response.text
    assert response.json() == {"observed": len(events)}


def test_events_one_or_several_count_in_their_order(client: httpx.Client, reference: SessionRecommender):
    events = [("order", 30), ("order", 70), ("other", 30), ("order", 20)]
    observe(client, events[0])
    observe(client, *events[1:])
    reference.observe_many([Event(*event) for event in events])
    for user in ("order", "other"):
        response = client.post("/recommend", json={"user": user, "k": 7})
        assert items_of(response) == best_of(reference, user, 7)
        scores = [entry["score"] for entry in response.json()["items"]]
        assert scores == pytest.approx([scored.score for scored in reference.recommend(user, 7)], rel=1e-5)


def test_a_history_is_answered_as_a_session_of_the_same_events(client: httpx.Client, reference: SessionRecommender):
    history = [30, "70", 20]
    reference.observe_many([Event("x", item) for item in history])
    before = client.get("/health").json()["users"]
    assert items_of(client.post("/recommend", json={"history": history})) == best_of(reference, "x", 10)
    # Nothing is kept.
    assert client.get("/health").json()["users"] == before


@pytest.mark.parametrize("whose", [{"user": "blocked"}, {"history": [30, 70]}])
def test_seen_and_blocked_items_are_left_out(client: httpx.Client, whose: dict):
    if "user" in whose:
        observe(client, ("blocked", 30), ("blocked", 70))
    ask = {**whose, "k": 20, "filter_seen": False}
    everything = items_of(client.post("/recommend", json=ask))
    unseen = items_of(client.post("/recommend", json={**ask, "filter_seen": True, "k": 18}))
    assert {30, 70}.isdisjoint(unseen)
    assert unseen[:10] == [item for item in everything if item not in (30, 70)][:10]
    # An id as text is the same id, and one that the catalogue does not have does no harm.
    blocked = [everything[0], str(everything[2]), 5]
    left = items_of(client.post("/recommend", json={**ask, "block": blocked, "k": 17}))
    assert left == [item for item in everything if item not in (everything[0], everything[2])][:17]


def test_all_items_but_the_blocked_are_found(client: httpx.Client):
    observe(client, ("all", 30))
    for whose in ({"user": "all"}, {"history": [30]}):
        ask = {**whose, "k": 20, "block": ITEMS[5:]}
        assert sorted(items_of(client.post("/recommend", json=ask))) == [10, 20, 40, 50]


def test_integers_and_their_decimal_text_are_the_same_user(client: httpx.Client):
    observe(client, (7001, 30))
    observe(client, ("7001", 40))
    by_number, by_text = (items_of(client.post("/recommend", json={"user": user})) for user in (7001, "7001"))
    assert by_number == by_text
    assert client.delete("/users/7001").status_code == 204
    error_of(client.post("/recommend", json={"user": 7001}), 404)


@pytest.mark.parametrize(
    ("user", "path"), [("a/b", "a/b"), ("a/b", "a%2Fb"), ("50%", "50%25"), ("ö", "%C3%B6"), ("?#", "%3F%23")]
)
def test_users_with_any_name_are_forgotten(client: httpx.Client, user: str, path: str):
    observe(client, (user, 30))
    assert client.delete(f"/users/{path}").status_code == 204
    assert "nothing to forget" in error_of(client.delete(f"/users/{path}"), 404)
    assert "is known; observe one first" in error_of(client.post("/recommend", json={"user": user}), 404)


def test_health_says_what_the_server_has(client: httpx.Client):
    before = client.get("/health").json()
    assert before == {
        "model": "MambaRec",
        "version": __version__,
        "streams": True,
        "users": before["users"],
        "items": NUM_ITEMS,
        "checkpoint": None,
        "reloads": 0,
        "rebuilt_share": 1.0,
    }


def test_metrics_count_answers_batches_users_and_events(client: httpx.Client):
    def counts() -> dict[str, float]:
        lines = [line.rpartition(" ") for line in client.get("/metrics").text.splitlines() if line[0] != "#"]
        return {name: float(value) for name, _, value in lines}

    before = counts()
    observe(client, ("metrics", 30), ("metrics", 40))
    client.post("/recommend", json={"user": "unheard of"})
    client.delete("/users/unheard%20of")
    client.get("/no/such/route")
    after = counts()

    def added(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert added('seqrec_requests_total{route="/observe",status="200"}') == 1
    assert added('seqrec_requests_total{route="/recommend",status="404"}') == 1
    assert added('seqrec_requests_total{route="/users/{user}",status="404"}') == 1
    assert added('seqrec_requests_total{route="other",status="404"}') == 1
    assert added("seqrec_observed_events_total") == 2
    assert added('seqrec_batch_size_count{work="observe"}') == 1
    assert added('seqrec_request_seconds_count{route="/observe"}') == 1
    assert after["seqrec_users"] >= 1
    assert after["seqrec_requests_in_work"] == 1  # the one for the metrics


def test_a_retrained_model_goes_on_with_the_users_of_the_one_before(tmp_path: Path):
    path, events = tmp_path / "s.db", [{"user": f"u{n % 3}", "item": item} for n, item in enumerate(ITEMS[:30])]

    def gauges(client: httpx.Client) -> dict[str, float]:
        lines = [line.split() for line in client.get("/metrics").text.splitlines() if line[0] != "#"]
        return {name.removeprefix("seqrec_"): float(value) for name, value in lines if "{" not in name}

    recommender = SessionRecommender(model(), SQLiteStore(path, max_users=2))
    with recommender, serving(create_app(recommender)) as url, httpx.Client(base_url=url) as client:
        assert client.post("/observe", json=events).status_code == 200
        kept = gauges(client)
        users = [each for each in ("u0", "u1", "u2") if each in recommender]
    assert (kept["users"], kept["dropped_sessions"], kept["rebuilt_sessions"]) == (2, 1, 0)
    assert kept["event_bytes"] > 0
    retrained = model()
    with torch.no_grad():
        retrained.items.table.weight.mul_(-1)
    fresh = SessionRecommender(retrained)
    fresh.observe_many([Event(each["user"], each["item"]) for each in events])
    recommender = SessionRecommender(retrained, SQLiteStore(path))
    with recommender, serving(create_app(recommender)) as url, httpx.Client(base_url=url) as client:
        assert gauges(client)["state_bytes"] == kept["state_bytes"]
        for user in users:
            assert items_of(client.post("/recommend", json={"user": user})) == best_of(fresh, user)
        found = gauges(client)
    assert (found["users"], found["event_bytes"], found["rebuilt_sessions"]) == (2, kept["event_bytes"], 2)


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/recommend", {"user": "nobody"}, 404, "no event of user='nobody' is known; observe one first"),
        ("/observe", {"user": "u", "item": 31}, 422, "item=31 of user='u' is not among the 40 items"),
        ("/observe", [{"user": "u", "item": 10}, {"user": "u", "item": "x"}], 422, r"events\[1\]: item='x'"),
        ("/recommend", {"history": [10, 31]}, 422, r"history\[1\]: item=31 is not among the 40 items"),
        ("/recommend", {"history": []}, 422, "history: List should have at least 1 item"),
        ("/recommend", {"history": [10] * 51}, 422, "history: List should have at most 50 items"),
        (
            "/recommend",
            {"history": [10], "block": [10] * 51},
            422,
            "block: List should have at most 50 items",
        ),
        ("/recommend", {"user": "u", "k": 21}, 422, "k: Input should be less than or equal to 20"),
        ("/recommend", {"user": "u", "k": 0}, 422, "k: Input should be greater than or equal to 1"),
        ("/recommend", {"user": "u", "k": 2.0}, 422, "k: Input should be a valid integer"),
        ("/recommend", {"user": "u", "history": [10]}, 422, "user: Extra inputs are not permitted"),
        ("/recommend", {"user": "u", "top": 3}, 422, "top: Extra inputs are not permitted"),
        ("/recommend", {}, 422, "user: Field required"),
        ("/recommend", [], 422, "the body: Input should be a valid dictionary"),
        ("/observe", [], 422, "the body: List should have at least 1 item"),
        ("/observe", [{"user": "u", "item": 10}] * 9, 422, "the body: List should have at most 8 items"),
        ("/observe", {"user": "", "item": 10}, 422, "user: String should have at least 1 character"),
        ("/observe", {"user": "u" * 257, "item": 10}, 422, "user: String should have at most 256 characters"),
        ("/observe", {"user": True, "item": 10}, 422, "user: Input should be a valid integer or .*string"),
        ("/observe", {"user": 2**63, "item": 10}, 422, "user: Input should be less than 9223372036854775808"),
        ("/observe", {"user": "u", "item": 10, "time": 1.5}, 422, "time: Input should be a valid integer"),
        ("/observe", {"user": None, "item": None, "time": "t", "a": 1}, 422, "; and 1 more$"),
    ],
)
def test_bad_values_are_refused_with_the_reason(
    client: httpx.Client, path: str, body: object, status: int, reason: str
):
    assert re.search(reason, error_of(client.post(path, json=body), status))


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b'{"user": "u", "item": 10', 400, "the body is not JSON: .* at character 24"),
        (b'{"user": NaN, "item": Infinity, "time": -Infinity}', 422, "user: .*; item: .*; time: "),
        (b'{"user": "u", "item": 10, "time": 1e999}', 422, "time: Input should be a valid integer"),
        (
            b'{"user": "\\ud800", "item": 10, "\\ud801": 1}',
            422,
            "unable to parse raw data as a unicode string",
        ),
        (b'{"user": "\xff", "item": 10}', 400, "error parsing the body"),
        (b"[" * 4000, 400, "error parsing the body|no JSON|is not JSON"),
        (b"1" * 4000, 422, "the body: |digits"),
        (b"", 422, "the body: Field required"),
        (b"null", 422, "the body: "),
    ],
)
def test_what_is_no_request_is_refused(client: httpx.Client, body: bytes, status: int, reason: str):
    assert re.search(reason, error_of(client.post("/observe", content=body, headers=JSON), status))


def test_other_routes_and_methods_are_refused(client: httpx.Client):
    assert error_of(client.get("/nowhere"), 404) == "Not Found"
    assert error_of(client.get("/observe"), 405) == "Method Not Allowed"
    assert client.get("/observe").headers["allow"] == "POST"


def test_an_event_before_the_newest_is_a_conflict(client: httpx.Client):
    assert client.post("/observe", json={"user": "late", "item": 10, "time": 9}).status_code == 200
    reason = error_of(client.post("/observe", json={"user": "late", "item": 10, "time": 8}), 409)
    assert "is before the user's newest event at 9" in reason


def test_a_damaged_session_is_a_conflict_until_the_user_is_forgotten(client: httpx.Client, store: InMemoryStore):
    observe(client, ("damaged", 30))
    (row,) = store.get_many([b"damaged"])
    store.put_many([(b"damaged", row[:-1] + b"?")])
    for path, body in (("/observe", {"user": "damaged", "item": 10}), ("/recommend", {"user": "damaged"})):
        assert "is damaged: " in error_of(client.post(path, json=body), 409)
    assert client.delete("/users/damaged").status_code == 204
    observe(client, ("damaged", 30))


def test_long_reasons_are_cut(client: httpx.Client):
    body = {"user": "u", "item": 10, "x" * 2000: 1}
    assert len(error_of(client.post("/observe", json=body), 422)) < 700


def test_clients_at_once_are_answered_as_one_after_the_other(client: httpx.Client, reference: SessionRecommender):
    def follow(user: int) -> list[list[int | str]]:
        with httpx.Client(base_url=client.base_url) as own:
            found = []
            for step in range(4):
                observe(own, (f"u{user}", ITEMS[(7 * user + 3 * step) % NUM_ITEMS]))
                found.append(items_of(own.post("/recommend", json={"user": f"u{user}", "k": 5})))
                # Bad requests among them change nothing for the others.
                if user % 4 == 0:
                    error_of(own.post("/observe", json={"user": f"u{user}", "item": 1}), 422)
                    error_of(own.post("/recommend", json={"user": "nobody"}), 404)
            return found

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(follow, range(32)))
    for user in range(32):
        for step in range(4):
            reference.observe(f"u{user}", ITEMS[(7 * user + 3 * step) % NUM_ITEMS])
            assert found[user][step] == best_of(reference, f"u{user}", 5)


class UnreachableStore(InMemoryStore):
    """Fails as a store does that cannot be reached, or in a way that nobody foresaw."""

    error: Exception | None = None

    def get_live(self, keys):
        if self.error is not None:
            raise self.error
        return super().get_live(keys)


class BlockedStore(InMemoryStore):
    """Holds the model's thread until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.resume = threading.Event()
        self.resume.set()

    def get_live(self, keys):
        assert self.resume.wait(20)
        return super().get_live(keys)


def test_those_who_ask_at_the_same_time_whether_the_model_is_ready_do_not_disturb_each_other():
    class Answering:
        async def submit(self, work: object) -> None:
            await asyncio.sleep(0)

    async def ask() -> None:
        health = Health(Answering(), Answering(), ready_seconds=60)

        async def client() -> None:
            for _ in range(20):
                await health.check_ready()

        await asyncio.gather(*(client() for _ in range(8)))

    asyncio.run(ask())


def test_a_blocked_model_is_alive_but_not_ready():
    store = BlockedStore()
    app = create_app(SessionRecommender(model(), store), limits=Limits(ready_seconds=0.2, max_requests=1))
    with serving(app) as url, httpx.Client(base_url=url) as client, ThreadPoolExecutor(1) as pool:
        assert client.get("/ready").json() == {"status": "ready"}
        store.resume.clear()
        try:
            held = pool.submit(httpx.post, f"{url}/observe", json={"user": 1, "item": 10}, timeout=20)
            while client.get("/openapi.json").status_code != 503:  # not in progress yet
                pass
            seconds = []
            for _ in range(20):
                begin = time.perf_counter()
                assert client.get("/live").json() == {"status": "live"}
                seconds.append(time.perf_counter() - begin)
            assert sorted(seconds)[10] < 0.05
            for _ in range(2):
                assert error_of(client.get("/ready"), 503) == "the model has not answered for 0.2 s"
            assert client.get("/health").json()["users"] == 0
            assert "seqrec_requests_in_work 2" in client.get("/metrics").text
        finally:
            store.resume.set()
        assert held.result().status_code == 200
        assert client.get("/ready").json() == {"status": "ready"}
        assert client.get("/health").json()["users"] == 1


def test_a_store_that_cannot_be_read_is_not_ready_and_is_not_described():
    store = UnreachableStore()
    with serving(create_app(SessionRecommender(model(), store))) as url:
        for error in (SessionStoreError("/secret/path cannot be used"), ZeroDivisionError("a bug")):
            store.error = error
            assert error_of(httpx.get(f"{url}/ready"), 503) == "the sessions cannot be read; see the server's log"
        assert httpx.get(f"{url}/live").status_code == 200
        store.error = None
        assert httpx.get(f"{url}/ready").status_code == 200


def test_the_state_that_a_request_changes_is_bounded():
    recommender = SessionRecommender(model())
    own = row_bytes_of(recommender)
    limits = Limits(max_request_state_bytes=3 * own)
    with serving(create_app(recommender, limits=limits)) as url, httpx.Client(base_url=url) as client:
        several = [("a", 10), ("b", 10), ("a", 20), ("c", 10)]
        observe(client, *several)
        body = [{"user": user, "item": item} for user, item in (*several, ("d", 10))]
        reason = error_of(client.post("/observe", json=body), 413)
        assert reason == (
            f"events: the states of 4 users take {4 * own:,} bytes, and a request may have {3 * own:,}; "
            "send 3 users at a time"
        )
    assert len(recommender) == 3


def test_a_server_survives_failures_of_its_store(capfd: pytest.CaptureFixture[str]):
    store = UnreachableStore()
    with serving(create_app(SessionRecommender(model(), store))) as url, httpx.Client(base_url=url) as client:
        store.error = SessionStoreError("no connection")
        response = client.post("/observe", json={"user": 1, "item": 10})
        assert error_of(response, 503) == "no connection"
        assert response.headers["retry-after"] == "1"
        store.error = ZeroDivisionError("a bug")
        reason = error_of(client.post("/recommend", json={"user": 1}), 500)
        assert reason == "the server failed; see its log"
        store.error = None
        observe(client, (1, 10))
    assert "ZeroDivisionError: a bug" in capfd.readouterr().err


def test_a_model_that_keeps_no_state_is_served_too(tmp_path: Path):
    popularity = Popularity.from_counts(np.arange(NUM_ITEMS + 1))
    popularity.item_vocabulary = model().item_vocabulary
    with (
        SessionRecommender(popularity, SQLiteStore(tmp_path / "users.sqlite")) as recommender,
        serving(create_app(recommender)) as url,
        httpx.Client(base_url=url) as client,
    ):
        assert client.get("/health").json()["streams"] is False
        observe(client, (1, ITEMS[-1]))
        expected = ITEMS[-2:-5:-1]
        assert items_of(client.post("/recommend", json={"user": 1, "k": 3})) == expected
        assert items_of(client.post("/recommend", json={"history": [ITEMS[-1]], "k": 3})) == expected


def test_the_default_k_is_no_more_than_the_limit():
    app = create_app(SessionRecommender(model()), limits=Limits(max_k=4))
    schema = app.openapi()["components"]["schemas"]["RecommendToUser"]["properties"]["k"]
    assert (schema["default"], schema["maximum"]) == (4, 4)


def test_the_schema_names_every_answer(client: httpx.Client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        *("/observe", "/recommend", "/similar", "/users/{user}"),
        *("/live", "/ready", "/health", "/metrics"),
    }
    assert "HTTPValidationError" not in json.dumps(schema)
    for path in ("/observe", "/recommend"):
        answers = schema["paths"][path]["post"]["responses"]
        assert {"200", "400", "401", "403", "408", "409", "413", "415", "421", "422", "503"} <= set(answers)
        for status, answer in answers.items():
            name = answer["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert (name == "ErrorAnswer") == (status != "200")


def test_threads_of_a_server_end_with_it():
    def threads() -> int:
        return sum("seqrec-model" in thread.name for thread in threading.enumerate())

    before = threads()
    with serving(create_app(SessionRecommender(model()))) as url:
        assert httpx.post(f"{url}/observe", json={"user": 1, "item": 10}).status_code == 200
        assert threads() > before
    assert threads() == before
