"""The page of `seqrec serve --demo` over HTTP: what it may do, and what its routes answer."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars
import pytest
from served_models import ITEMS, NUM_ITEMS, error_of, model, reading_model, serving

from seqrec import EventTime
from seqrec.catalogue.item_columns import SHOWN_CHARACTERS, ItemColumns
from seqrec.cli import main
from seqrec.data.event_columns import EventColumn
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError
from seqrec.inference import load
from seqrec.inference.sessions import Event, InMemoryStore, KeptEvents, SessionRecommender, UserHistory
from seqrec.models import MambaRec, Popularity, Recommender
from seqrec.serving.app import create_app
from seqrec.serving.demo import SHOWN_EVENTS
from seqrec.serving.history_work import HistoryWork
from seqrec.serving.metrics import Metrics
from seqrec.serving.work import Explain, Explained

HOSTILE = "<img src=x onerror=alert(1)>"
TABLE = polars.DataFrame({"item_id": ITEMS[:-1], "Title": [HOSTILE, *(f"No. {item}" for item in ITEMS[1:-1])]})
TOKEN = "a-token-of-some-length"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


def demo(served: Recommender, keep_events: int = 100, titles: ItemColumns | None = None, **given: Any) -> Any:
    recommender = SessionRecommender(served, InMemoryStore(keep_events=keep_events))
    return create_app(recommender, demo=True, titles=titles, **given)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    titles = ItemColumns.read(TABLE, model().item_vocabulary)
    with serving(demo(model(), titles=titles, token=TOKEN)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=AUTHORIZED) as client:
        yield client


def look(client: httpx.Client, user: int | str, **more: Any) -> dict[str, Any]:
    response = client.post("/demo/user", json={"user": user, **more})
    assert response.status_code == 200, response.text
    return response.json()


def observe(client: httpx.Client, user: int | str, items: Sequence[int], **more: Any) -> None:
    response = client.post("/observe", json=[{"user": user, "item": item, **more} for item in items])
    assert response.status_code == 200, response.text


def test_the_page_runs_its_own_script_alone_and_asks_its_own_server_alone(url: str):
    response = httpx.get(f"{url}/")
    page = response.text
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert len(page) < 100_000
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    assert not re.search(r"//[\w.]+/|https?:|url\(|@import|\bsrc=|\bon\w+=", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|\.write\(|eval\(|[sS]torage|cookie", page)
    assert httpx.head(f"{url}/").headers["content-security-policy"] == response.headers["content-security-policy"]


def test_the_page_needs_no_token_but_all_that_it_asks_does(url: str, client: httpx.Client):
    assert TOKEN not in httpx.get(f"{url}/").text
    error_of(httpx.get(f"{url}/demo/about"), 401)
    error_of(httpx.post(f"{url}/demo/user", json={"user": "ada"}), 401)
    error_of(httpx.get(f"{url}/", headers={"Host": "other.example"}), 421)
    # Only to read it: the body of a stranger is refused before it is read.
    error_of(httpx.post(f"{url}/", json={}), 401)
    error_of(client.post("/", json={}), 405)
    about = client.get("/demo/about").json()
    expected = {"model": "MambaRec", "items": NUM_ITEMS, "max_k": 40, "unit": None, "time": None, "columns": []}
    assert about == {**expected, "missing": []}
    counted = client.get("/metrics").text
    assert 'route="/demo/user",status="401"' in counted
    assert 'route="/",status="200"' in counted
    assert "demo" not in client.get("/openapi.json").text


def test_without_demo_there_is_no_page():
    with serving(create_app(SessionRecommender(model()))) as url:
        for path in ("/", "/demo/about"):
            error_of(httpx.get(url + path), 404)
        error_of(httpx.post(f"{url}/demo/user", json={"user": "ada"}), 404)
        assert 'route="/"' not in httpx.get(f"{url}/metrics").text
    with serving(create_app(SessionRecommender(model()), token=TOKEN)) as url:
        error_of(httpx.get(f"{url}/"), 401)


def test_a_user_is_shown_with_titles_and_explained(client: httpx.Client):
    error_of(client.post("/demo/user", json={"user": "ada"}), 404)
    observe(client, "ada", [400, 10, 70])
    reference = SessionRecommender(model())
    reference.observe_many([Event("ada", item) for item in (400, 10, 70)])
    best = reference.recommend("ada", 5)
    found = look(client, "ada", k=5)
    titles = {str(item): title for item, title in TABLE.iter_rows()}
    assert [each["item"] for each in found["items"]] == [str(each.item) for each in best]
    assert [each["score"] for each in found["items"]] == pytest.approx([each.score for each in best], rel=1e-5)
    assert [each["title"] for each in found["items"]] == [titles[str(each.item)] for each in best]
    assert [(each["item"], each["title"]) for each in found["events"]] == [
        ("70", "No. 70"),
        ("10", HOSTILE),
        ("400", None),
    ]
    assert found["num_events"] == 3
    # The best item is explained, or another one that is asked for.
    for item in (best[0].item, 90):
        why = reference.model.explain([400, 10, 70], item)
        found = look(client, "ada", k=5, **({} if item == best[0].item else {"item": item}))
        shares = [each["contribution"] for each in reversed(found["events"])]
        assert shares == pytest.approx(why.contributions.tolist(), rel=1e-4, abs=1e-5)
        shown = {name: found["explained"][name] for name in ("item", "title", "method", "num_events")}
        expected = {"item": str(item), "title": titles[str(item)], "method": "leave_one_out", "num_events": 3}
        assert shown == expected
        assert found["explained"]["score"] == pytest.approx(why.score, rel=1e-4)


def test_an_event_changes_what_is_shown(client: httpx.Client):
    observe(client, "eve", [30])
    before = look(client, "eve")
    added = int(before["items"][0]["item"])
    observe(client, "eve", [added])
    after = look(client, "eve")
    assert [each["item"] for each in after["events"]] == [str(added), "30"]
    assert after["num_events"] == 2
    assert str(added) not in [each["item"] for each in after["items"]]
    observe(client, "eve", [50] * 30)
    found = look(client, "eve")
    assert (found["num_events"], len(found["events"])) == (32, SHOWN_EVENTS)


def test_requests_out_of_range_are_refused(client: httpx.Client):
    observe(client, "bob", [30])
    for body, message in (
        ({"user": "bob", "k": 41}, "less than or equal to 40"),
        ({"user": "bob", "what": 1}, "Extra inputs"),
    ):
        assert message in error_of(client.post("/demo/user", json=body), 422)
    found = look(client, "bob", item="unknown")
    assert found["explained"] is None
    assert found["reason"] == "item='unknown' is not among the 40 items of the model"
    assert [each["contribution"] for each in found["events"]] == [None]
    assert re.search(r'^seqrec_batch_size_count\{work="show"\} [1-9]', client.get("/metrics").text, re.MULTILINE)


def test_what_cannot_be_shown_is_named():
    with serving(demo(model(), keep_events=0)) as url, httpx.Client(base_url=url) as client:
        assert "no column of items is named title, name" in client.get("/demo/about").json()["missing"][0]
        observe(client, 7, [30, 70])
        found = look(client, "7", k=3)
        assert (len(found["items"]), found["events"], found["num_events"]) == (3, [], 2)
        assert "keeps no events of this user" in found["reason"]
    popular = Popularity(NUM_ITEMS)
    popular.item_vocabulary = Vocabulary(np.array(ITEMS))
    with serving(demo(popular)) as url, httpx.Client(base_url=url) as client:
        missing = client.get("/demo/about").json()["missing"]
        assert missing[1] == "Recommendations have no explanations: Popularity does not read a sequence of events."
        observe(client, 7, [30])
        found = look(client, 7)
        assert [each["item"] for each in found["events"]] == ["30"]
        assert "Popularity reads no sequence of events" in found["reason"]


def test_a_model_that_reads_times_and_columns_is_shown():
    time = EventTime(gap="buckets", request=True, unit="ns")
    columns = [EventColumn("tab", "categorical", values=["home", "search"]), EventColumn("looks", "vector", width=2)]
    served = reading_model(MambaRec, ["column_embedding"], event_columns=columns, time=time)
    store = InMemoryStore(keep_events=100)
    app = create_app(SessionRecommender(served, store), demo=True)
    with serving(app) as url, httpx.Client(base_url=url) as client:
        about = client.get("/demo/about").json()
        assert about["unit"] == "ns"
        assert about["columns"] == [
            {"name": "tab", "kind": "categorical", "values": ["home", "search"]},
            {"name": "looks", "kind": "vector", "values": []},
        ]
        first, second = 1_600_000_000 * 10**9, int(about["time"])
        for item, at in ((30, first), (70, second)):
            observe(client, "ada", [item], time=at, columns={"tab": "home", "looks": [0.5, 2]})
        found = look(client, "ada")
        assert found["events"][1]["time"] == "2020-09-13 12:26:40"
        assert int(found["time"]) >= second
        assert all(each["contribution"] for each in found["events"])
        assert found["explained"]["score"] == pytest.approx(found["items"][0]["score"], rel=1e-3)
        # The clock of who adds events may be ahead of the server's.
        ahead = second + 10**12
        observe(client, "ada", [20], time=ahead, columns={"tab": "home", "looks": [0.5, 2]})
        found = look(client, "ada")
        assert found["time"] == str(ahead)
        assert all(each["contribution"] for each in found["events"])
        assert found["explained"]["score"] == pytest.approx(found["items"][0]["score"], rel=1e-3)
    # A model that reads no times goes on with these events, and shows their times as they are.
    with (
        serving(create_app(SessionRecommender(model(), store), demo=True)) as url,
        httpx.Client(base_url=url) as client,
    ):
        assert [each["time"] for each in look(client, "ada")["events"]] == [str(ahead), str(second), str(first)]


def test_a_history_of_the_log_may_be_ahead_of_the_clock():
    time = EventTime(gap="buckets", request=True, unit="s")
    ahead = 2**40
    recommender = SessionRecommender(
        reading_model(MambaRec, [], time=time), history_of=lambda user: UserHistory([30, 70], times=[5, ahead])
    )
    with serving(create_app(recommender, demo=True)) as url, httpx.Client(base_url=url) as client:
        found = look(client, "ada")
        assert (found["time"], len(found["items"]), found["num_events"]) == (str(ahead), 10, 2)


def explained(served: Recommender, items: Sequence[int]) -> Explained:
    ((_, outcome),) = (pair for pairs in HistoryWork(served, Metrics())([explaining(items)]) for pair in pairs)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def explaining(items: Sequence[int]) -> Explain:
    return Explain(KeptEvents(0, items, None, ()), 50, "ada")


def test_events_count_if_the_model_reads_them(monkeypatch: pytest.MonkeyPatch):
    # The catalogue lacks 11, and the model reads 30 events.
    found = explained(model(), [10, 11, 70])
    assert found.contributions[1] is None
    assert found.contributions[::2] == pytest.approx(model().explain([10, 70], 50).contributions.tolist(), rel=1e-4)
    found = explained(model(), [20] * 5 + [30] * 30)
    assert found.contributions[:5] == [None] * 5
    assert None not in found.contributions[5:]
    with pytest.raises(InputError, match="none of the user's kept events has an item of the model's catalogue"):
        explained(model(), [11, 12])
    assert found.method == "leave_one_out"
    monkeypatch.setattr("seqrec.models.explain.LEFT_OUT_EVENTS", 2)
    assert explained(model(), [10, 20]).method == "leave_one_out"
    assert explained(model(), [10, 20, 30]).method == "gradient_x_input"


def test_titles_are_those_of_the_first_column_with_texts():
    long = "x" * 200
    frame = polars.DataFrame(
        {"item_id": [1, 2, 3, 4], "Name": ["a", "b", "c", "d"], "TITLE": ["P|Q ", "R", None, long]}, strict=False
    )
    vocabulary = Vocabulary([1, 2, 3, 4, 5])
    columns = ItemColumns.read(frame, vocabulary)
    assert columns.title_column == "TITLE"
    *some, cut, gone = columns.titles([1, 2, 3, 4, 5])
    assert some == ["P|Q", "R", None]
    assert gone is None
    assert cut == "x" * (SHOWN_CHARACTERS - 2) + ".."
    assert ItemColumns.read(frame.drop("TITLE"), vocabulary).titles([2, 1]) == ["b", "a"]
    numbers = ItemColumns.read(frame.select("item_id", name=polars.lit(3)), vocabulary)
    assert numbers.title_column is None
    assert numbers.titles([1]) == [None]


def arguments_of(checkpoint: Path, *words: str) -> dict[str, Any]:
    """What `seqrec serve` gives the application."""
    found: dict[str, Any] = {}

    def app(recommender: SessionRecommender, **arguments: Any) -> None:
        recommender.observe("ada", recommender.model.item_vocabulary.external_ids([1])[0])
        found.update(arguments, kept=recommender.kept_events("ada"))
        raise InputError("seen")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqrec.serving.app.create_app", app)
        with pytest.raises(SystemExit):
            main(["serve", *words, "--ckpt", str(checkpoint), "--port", "0"])
    return found


def test_the_command_keeps_events_for_the_page_and_finds_titles(checkpoint: Path, tmp_path: Path):
    vocabulary = load(checkpoint).item_vocabulary
    ids = vocabulary.external_ids(range(1, len(vocabulary) + 1))
    polars.DataFrame({"item_id": ids, "title": [f"no. {item}" for item in ids]}).write_csv(tmp_path / "i.csv")
    found = arguments_of(checkpoint, "--demo", "--items", str(tmp_path / "i.csv"))
    assert found["demo"] is True
    assert found["titles"].titles([1]) == [f"no. {ids[0]}"]
    assert found["columns"] is None
    assert list(found["kept"].items) == [ids[0]]
    found = arguments_of(checkpoint, "--demo")
    assert found["titles"] is None
    found = arguments_of(checkpoint, "--demo", "false")
    assert found["demo"] is False
    assert found["kept"] is None
