"""Candidates of requests over HTTP, and similar items."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import polars
import pytest
from served_models import ITEMS, error_of, items_of, model, serving

from seqrec.catalogue.candidates import Candidates
from seqrec.catalogue.conditions import MAX_LENGTH
from seqrec.catalogue.item_columns import ItemColumns
from seqrec.cli import main
from seqrec.errors import InputError
from seqrec.inference import load
from seqrec.inference.sessions import Event, SessionRecommender
from seqrec.models import Popularity
from seqrec.serving import Limits, command
from seqrec.serving.app import create_app
from seqrec.serving.choices import KEPT_CONDITIONS

TABLE = polars.DataFrame(
    {"item_id": ITEMS, "genre": ["jazz", "pop", None, "folk"] * 10, "size": range(40), "margin": [0.5] * 40}
)
JAZZ = TABLE.filter(polars.col("genre") == "jazz")["item_id"].to_list()
LIMITS = Limits(max_k=40, max_history=50)


def served(columns: ItemColumns | None) -> Any:
    recommender = SessionRecommender(model())
    recommender.observe_many([Event("ada", item) for item in (10, 50, 70)])
    jazz = Candidates.where("genre = 'jazz'", TABLE, recommender.model.item_vocabulary)
    return create_app(recommender, limits=LIMITS, candidates={"jazz": jazz}, columns=columns)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    columns = ItemColumns.read(TABLE, model().item_vocabulary).only(["genre", "size"], "where_columns")
    with serving(served(columns)) as url, httpx.Client(base_url=url) as client:
        yield client


WHOSE = pytest.mark.parametrize("whose", [{"user": "ada"}, {"history": [10, 50, 70]}])


@WHOSE
def test_a_name_a_list_and_a_condition_choose_the_items(client: httpx.Client, whose: dict[str, Any]):
    ask = {**whose, "k": 40, "filter_seen": False}
    every = items_of(client.post("/recommend", json=ask))
    jazz = [item for item in every if item in JAZZ]
    for choice in ({"candidates": "jazz"}, {"candidates": JAZZ}, {"where": "genre = 'jazz'"}):
        assert items_of(client.post("/recommend", json={**ask, **choice})) == jazz
        assert items_of(client.post("/recommend", json={**ask, **choice, "k": 3})) == jazz[:3]
    seen = client.post("/recommend", json={**whose, "k": 40, "candidates": "jazz"})
    assert items_of(seen) == [item for item in jazz if item not in (10, 50)]
    both = {"candidates": "jazz", "where": "size > 20", "block": [jazz[0]]}
    large = set(TABLE.filter(polars.col("size") > 20)["item_id"]) - {jazz[0]}
    assert items_of(client.post("/recommend", json={**ask, **both})) == [item for item in jazz if item in large]
    assert items_of(client.post("/recommend", json={**whose, "candidates": ["10", 50]})) == []


def test_similar_items_are_those_of_the_model(client: httpx.Client):
    reference = model()
    response = client.post("/similar", json={"item": 30, "k": 6})
    assert items_of(response) == reference.similar_items(30, 6)
    scores = [entry["score"] for entry in response.json()["items"]]
    assert scores == pytest.approx(
        reference.similar_items(reference_ids(reference, 30), 6).scores[0].tolist(), abs=1e-6
    )
    assert items_of(client.post("/similar", json={"item": "30", "k": 40})) == reference.similar_items(30, 40)
    chosen = items_of(client.post("/similar", json={"item": 10, "k": 3, "candidates": "jazz"}))
    assert chosen == reference.similar_items(10, 3, candidates=JAZZ)
    assert 10 not in chosen
    small = client.post("/similar", json={"item": 10, "k": 9, "where": "size < 3"})
    assert items_of(small) == reference.similar_items(10, 9, candidates=[20, 30])


def reference_ids(reference: Any, item: int) -> Any:
    import torch

    return torch.from_numpy(reference.item_vocabulary.lookup([item]))


def test_similar_items_are_counted(client: httpx.Client):
    client.post("/similar", json={"item": 30})
    text = client.get("/metrics").text
    assert 'seqrec_requests_total{route="/similar",status="200"}' in text
    assert 'seqrec_batch_size_count{work="similar"}' in text


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"candidates": "jaz"},
            r"candidates='jaz' is no name that this server was started with; it knows jazz; did you",
        ),
        ({"candidates": []}, "candidates: "),
        ({"candidates": [10, 11]}, "candidates has 11, which is not in the catalogue of 40 items"),
        ({"candidates": [[10]]}, "candidates"),
        ({"candidates": 10}, "candidates"),
        ({"candidates": {"jazz": 1}}, "candidates"),
        ({"candidates": [10] * 51}, "candidates: List should have at most 50 items"),
        ({"where": ""}, "where: String should have at least 1 character"),
        ({"where": 5}, "where: "),
        ({"where": "x" * (MAX_LENGTH + 1)}, f"where: String should have at most {MAX_LENGTH} characters"),
        ({"where": "genre = 'jazz"}, 'where="genre = \'jazz": at character 9'),
        (
            {"where": "margin > 0.1"},
            "where='margin > 0.1': it has the column 'margin', which items do not have; columns: ge",
        ),
        ({"where": "__class__ = 1"}, "it has the column '__class__', which items do not have"),
        ({"where": "size > (lambda: 1)()"}, "where it needs a value"),
        ({"where": "(" * 900 + "size > 1" + ")" * 900}, "more than 16 levels deep"),
        ({"where": "size > 1 or " * 160 + "size > 1"}, "more than 64 comparisons"),
        ({"where": "size > 99"}, "where='size > 99' leaves none of the 40 items"),
        ({"where": "genre = 'jáz'"}, "leaves none of the 40 items; genre is never 'jáz'"),
        ({"candidates": "jazz", "where": "size = 1"}, "have no item in common"),
    ],
)
@pytest.mark.parametrize("route", ["/recommend", "/similar"])
def test_bad_choices_are_refused(client: httpx.Client, route: str, choice: dict[str, Any], message: str):
    whose = {"user": "ada"} if route == "/recommend" else {"item": 10}
    reason = error_of(client.post(route, json={**whose, **choice}), 422)
    assert message in reason
    assert "\n" not in reason


def test_conditions_are_computed_once_and_few_are_kept(client: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    computed: list[str] = []
    where = Candidates.where

    def counted(condition: str, *arguments: Any, **options: Any) -> Candidates:
        computed.append(condition)
        return where(condition, *arguments, **options)

    monkeypatch.setattr(Candidates, "where", counted)

    def ask(condition: str) -> list[int | str]:
        return items_of(client.post("/similar", json={"item": 10, "where": condition}))

    first = ask("size < 9 and size > 1")
    assert ask("size < 9 and size > 1") == first
    assert computed == ["size < 9 and size > 1"]
    for number in range(KEPT_CONDITIONS):
        ask(f"size < {50 + number}")
    assert ask("size < 9 and size > 1") == first
    assert computed.count("size < 9 and size > 1") == 2


def test_half_a_character_is_refused(client: httpx.Client):
    body = json.dumps({"user": "ada", "where": "genre = 'X'"}).replace("X", "\\ud800")
    response = client.post("/recommend", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422), response.text
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"item": 11}, 422, "item=11 is not among the 40 items of the model"),
        ({}, 422, "item: Field required"),
        ({"item": 10, "k": 41}, 422, "k: Input should be less than or equal to 40"),
        ({"item": 10, "user": "ada"}, 422, "user: Extra inputs are not permitted"),
    ],
)
def test_bad_requests_for_similar_items_are_refused(client: httpx.Client, body: dict, status: int, message: str):
    assert message in error_of(client.post("/similar", json=body), status)


def test_a_bad_request_fails_alone(client: httpx.Client):
    from concurrent.futures import ThreadPoolExecutor

    bodies: list[dict[str, Any]] = [{"item": 10}, {"item": 11}, {"item": 20, "candidates": [5]}, {"item": 20}] * 5
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda body: client.post("/similar", json=body), bodies))
    assert [response.status_code for response in found] == [200, 422, 422, 200] * 5


def test_a_server_without_columns_refuses_conditions():
    with serving(served(None)) as url, httpx.Client(base_url=url) as client:
        reason = error_of(client.post("/recommend", json={"user": "ada", "where": "size > 1"}), 422)
        assert reason == "where: this server evaluates no conditions; its option --where_columns allows them"
        assert items_of(client.post("/recommend", json={"user": "ada", "candidates": [30]})) == [30]


def test_a_model_without_a_similarity_says_so():
    popularity = Popularity(num_items=40)
    popularity.item_vocabulary = model().item_vocabulary
    with serving(create_app(SessionRecommender(popularity))) as url, httpx.Client(base_url=url) as client:
        assert "Popularity has no similarity of items" in error_of(client.post("/similar", json={"item": 10}), 422)
        assert client.post("/recommend", json={"history": [10], "candidates": [30]}).status_code == 200


def test_candidates_of_another_catalogue_are_refused_at_the_start():
    with pytest.raises(InputError, match=r"candidates.old is of a catalogue of 5 items, but the model has 40"):
        create_app(SessionRecommender(model()), candidates={"old": Candidates([1], 5)})


def options(checkpoint: Path, **given: Any) -> tuple[dict[str, Candidates], ItemColumns | None]:
    """What `seqrec serve` makes of its options."""
    found: list[Any] = []

    def app(recommender: SessionRecommender, **arguments: Any) -> None:
        found.extend([arguments["candidates"], arguments["columns"]])
        raise InputError("seen")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqrec.serving.app.create_app", app)
        words = [f"--{name}={value}" for name, value in given.items()]
        with pytest.raises(SystemExit):
            main(["serve", "--ckpt", str(checkpoint), "--port", "0", *words])
    return found[0], found[1]


def test_the_commands_options_name_conditions_and_columns(checkpoint: Path, tmp_path: Path):
    vocabulary = load(checkpoint).item_vocabulary
    assert vocabulary is not None
    ids = vocabulary.external_ids(range(1, len(vocabulary) + 1))
    polars.DataFrame({"song": ids, "year": range(len(ids)), "margin": range(len(ids))}).write_parquet(
        tmp_path / "i.parquet"
    )
    table = {"items": tmp_path / "i.parquet", "items_key": "song"}
    new, late = "year > 5", "year >= 20 and not margin = 21"
    named, columns = options(
        checkpoint, **{"candidates.new": new, "candidates.late": late}, where_columns="year", **table
    )
    assert list(named) == ["new", "late"]
    assert named["new"].item_ids.tolist() == list(range(7, len(ids) + 1))
    assert 22 not in named["late"].item_ids.tolist()
    assert columns is not None
    assert list(columns) == ["year"]
    _, columns = options(checkpoint, where_columns="*", **table)
    assert list(columns or ()) == ["year", "margin"]
    assert options(checkpoint) == ({}, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"candidates": {"x": "year > 1"}}, "has no columns of items, which conditions read"),
        ({"candidates": {"x": "yeer > 1"}, "items": "i.csv"}, "candidates.x='yeer > 1': it has the column 'yeer'"),
        ({"candidates": {"x": "year > 999"}, "items": "i.csv"}, "candidates.x='year > 999' leaves none of the"),
        (
            {"where_columns": "yeer", "items": "i.csv"},
            "where_columns=yeer has the column 'yeer', which items do not have",
        ),
        ({"items": "i.csv"}, r"items='i.csv' has no effect without --candidates.NAME, --where_columns or --demo"),
        ({"items": "gone.csv", "where_columns": "*"}, "items='gone.csv' does not exist"),
    ],
)
def test_bad_options_are_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str
):
    monkeypatch.chdir(tmp_path)
    vocabulary = load(checkpoint).item_vocabulary
    assert vocabulary is not None
    ids = vocabulary.external_ids(range(1, len(vocabulary) + 1))
    polars.DataFrame({"item_id": ids, "year": range(len(ids))}).write_csv("i.csv")
    with pytest.raises(InputError, match=message):
        command.serve(str(checkpoint), port=0, **given)
