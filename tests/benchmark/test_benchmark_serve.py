"""`seqrec benchmark serve`: what clients count, how figures read, and from end to end."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI

from seqrec.benchmark import serve
from seqrec.benchmark.serve import Answers, benchmark_serve, measure_clients, route_table, rows_of
from seqrec.benchmark.serve_child import bare_app, recommender
from seqrec.errors import InputError
from seqrec.serving import Limits
from seqrec.serving.app import create_app
from seqrec.serving.server import Server, bind, url_of

pytestmark = pytest.mark.process


@contextmanager
def in_a_thread(app: FastAPI) -> Iterator[str]:
    ready = threading.Event()
    with bind("127.0.0.1", 0) as listener:
        server = Server(app, limits=Limits(), ready=ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        assert ready.wait(20)
        try:
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join(20)


def answered(answers: Answers) -> int:
    return sum(map(len, answers.seconds.values()))


LOAD = {"clients": 3, "requests": 12, "seconds": 20.0, "k": 2, "seed": 0}


def test_half_of_the_requests_observe_and_half_recommend_and_all_are_counted(tmp_path: Path):
    settings = {"items": 20, "d_model": 8, "num_layers": 1, "sessions": str(tmp_path / "sessions.sqlite")}
    with recommender(settings) as sessions, in_a_thread(create_app(sessions)) as url:
        answers = measure_clients(url, items=20, **LOAD)
    assert answers.errors == 0
    assert {route: len(seconds) for route, seconds in answers.seconds.items()} == {
        "/observe": 6,
        "/recommend": 6,
    }
    assert 0 < max(max(seconds) for seconds in answers.seconds.values()) <= answers.wall_seconds


def test_the_yardstick_is_asked_for_nothing():
    with in_a_thread(bare_app()) as url:
        answers = measure_clients(url, items=None, **LOAD)
    assert (answered(answers), answers.errors, list(answers.seconds)) == (12, 0, ["/nothing"])


def test_refused_requests_and_lost_connections_are_errors():
    with in_a_thread(bare_app()) as url:
        answers = measure_clients(url, items=5, **LOAD)  # it has no such routes
    assert answers.errors == 3 * (10 + 4)
    assert answered(answers) == 0


def test_no_requests_are_sent_after_the_time():
    with in_a_thread(bare_app()) as url:
        answers = measure_clients(url, items=None, **{**LOAD, "requests": 10**6, "seconds": 2.0})
    assert 0 < answered(answers) < 10**5


def test_figures_are_by_route_and_of_all():
    answers = Answers({"/recommend": [0.002] * 99 + [0.5], "/observe": [0.004] * 100}, errors=2, wall_seconds=4.0)
    rows = rows_of("serve", answers)
    assert [(row["route"], row["requests"], row["per_second"]) for row in rows] == [
        ("/observe", 100, 25.0),
        ("/recommend", 100, 25.0),
        ("all", 200, 50.0),
    ]
    assert [row["p50_ms"] for row in rows[:2]] == pytest.approx([4, 2])
    assert 2 < rows[1]["p99_ms"] < 500
    assert re.search(r"^serve /observe +100 +25 +4\.0 +4\.0 +2$", str(route_table(rows)), re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clients": 0}, "clients=0 must be at least 1"),
        ({"requests": 3}, "requests=3 must be at least one for each of clients=32"),
        ({"k": 11, "items": 10}, "k=11 must be at most items=10"),
        ({"json_file": "/no/such/folder/f.json"}, "is in a folder that does not exist"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict, message: str):
    with pytest.raises(InputError, match=message):
        benchmark_serve(**arguments)


def test_clients_stop_if_one_cannot_connect():
    # Port 1 is closed: none of them may wait for the others.
    answers = measure_clients("http://127.0.0.1:1", items=None, **LOAD)
    assert (answered(answers), answers.errors) == (0, 3)


def test_without_httpx_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(InputError, match=r'pip install "seqrec\[benchmark\]"'):
        benchmark_serve()


def test_errors_fail_the_benchmark_after_its_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    @contextmanager
    def nowhere(child: dict) -> Iterator[str]:
        yield "http://127.0.0.1:1"

    failed = Answers({"/observe": [0.1]}, errors=3, wall_seconds=1.0)
    monkeypatch.setattr(serve, "running_server", nowhere)
    monkeypatch.setattr(serve, "measure_clients", lambda *args, **kwargs: failed)
    with pytest.raises(InputError, match="3 requests failed; none should"):
        benchmark_serve()
    assert "serve /observe" in capsys.readouterr().out


@pytest.mark.slow
def test_servers_are_started_measured_and_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # pytest -m slow tests/benchmark/test_benchmark_serve.py
    written = tmp_path / "figures.json"
    benchmark_serve(2, requests=40, items=50, d_model=8, num_layers=1, folder=str(tmp_path), json_file=str(written))
    assert "bare /nothing" in capsys.readouterr().out
    rows = json.loads(written.read_text())["rows"]
    assert [(row["server"], row["route"]) for row in rows] == [
        ("bare", "/nothing"),
        ("serve", "/observe"),
        ("serve", "/recommend"),
        ("serve", "all"),
    ]
    assert sum(row["errors"] for row in rows) == 0
    assert list(tmp_path.iterdir()) == [written]
