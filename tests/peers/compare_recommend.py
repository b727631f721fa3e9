"""Users a second of our recommendations in bulk beside RecTools' SASRec `recommend`, on the same log and settings.

    python -m venv peers && peers/bin/pip install -r tests/peers/requirements.txt
    SEQREC_PEERS_PYTHON=peers/bin/python python tests/peers/compare_recommend.py [ml-1m.zip]

Each side is a SASRec of the same width, length, layers and heads that has taken two steps, as weights do not change the
time. RecTools returns a pandas frame of a data set in memory; ours are `seqrec recommend`'s Parquet files from the
store (without loading the checkpoint), and `model.recommend` from a frame to a frame. The sides take turns; the fastest
repetition of each counts. Set OMP_NUM_THREADS to the threads that both may use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch
from compare_metrics import peers_python

from seqrec.catalogue.recommend import RecommendOptions
from seqrec.data.prepare import Filters, prepare
from seqrec.data.sources import ML1M, Source, Synthetic
from seqrec.data.store import EventStore
from seqrec.inference.bulk import BulkJob, BulkOutput, BulkUsers, describe, recommend_in_bulk
from seqrec.models import SASRec

SETTINGS = {"d_model": 64, "max_length": 200, "num_layers": 2, "num_heads": 2}


def events_of(store: EventStore) -> polars.DataFrame:
    """The store's events in the log's ids."""
    rows = np.repeat(np.arange(1, store.num_users + 1), np.diff(store.offsets))
    return polars.DataFrame(
        {
            "user_id": store.user_vocabulary.external_series(rows),
            "item_id": store.item_vocabulary.external_series(np.asarray(store.item_ids)),
            "timestamp": np.asarray(store.timestamps),
        }
    )


def model_of(store: EventStore) -> SASRec:
    """An untrained model that knows the log's ids."""
    torch.manual_seed(0)
    model = SASRec(store.num_items, **SETTINGS).eval()
    model.item_vocabulary, model.user_vocabulary = store.item_vocabulary, store.user_vocabulary
    return model


def seconds_of(run: Callable[[], object]) -> float:
    """Wall-clock time of one run."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def ours(store: EventStore, folder: Path, top_k: int) -> dict[str, float]:
    """Seconds of each of our ways."""
    model, events = model_of(store), events_of(store)

    def in_bulk() -> None:
        users = BulkUsers(store, model, own=True, part_users=1 << 14)
        job = BulkJob(RecommendOptions(top_k))
        files = BulkOutput(folder / f"recs-{time.monotonic_ns()}", describe(model, job))
        assert recommend_in_bulk(model, users, files, job, show=lambda _: None)["rows"] > 0  # type: ignore[index]

    return {
        "seqrec recommend": seconds_of(in_bulk),
        "model.recommend": seconds_of(lambda: model.recommend(events, top_k)),
    }


def theirs(name: str, events: Path, settings: Path, python: str) -> dict[str, Any]:
    """What a script here of RecTools' prints.

    Raises:
        RuntimeError: the other interpreter fails; the message is its own.
    """
    script = Path(__file__).with_name(name)
    done = subprocess.run(
        [python, str(script), str(events), str(settings)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{python} {script.name} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(source: Source, python: str, *, top_k: int = 100, rounds: int = 2) -> dict[str, float]:
    """Users a second of each side, the fastest of all rounds."""
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = prepare(source, Filters(), folder / "store")
        events_of(store).write_csv(folder / "events.csv")
        threads = torch.get_num_threads()
        settings = SETTINGS | {"top_k": top_k, "threads": threads, "repetitions": 2}
        (folder / "settings.json").write_text(json.dumps(settings))
        for _ in range(rounds):
            found = theirs("rectools_recommend.py", folder / "events.csv", folder / "settings.json", python)
            assert found["users"] == store.num_users
            seconds = {"RecTools": min(found["seconds"])}
            for _ in range(2):
                for way, value in ours(store, folder, top_k).items():
                    seconds[way] = min(value, seconds.get(way, value))
            for way, value in seconds.items():
                best[way] = max(best.get(way, 0.0), store.num_users / value)
    return best


def main() -> None:
    """Print users a second and ratios."""
    warnings.simplefilter("ignore")
    python = peers_python()
    if python is None:
        raise SystemExit("error: set SEQREC_PEERS_PYTHON to a Python with tests/peers/requirements.txt installed")
    source = ML1M(sys.argv[1]) if len(sys.argv) > 1 else Synthetic(num_users=300, num_items=500, mean_events=60)
    found = compare(source, python)
    threads = os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())
    print(f"{', '.join(f'{name} {value}' for name, value in SETTINGS.items())}, top 100, threads {threads}")
    for way, users in found.items():
        print(f"{way:<18}{users:>10,.0f} users/s{users / found['RecTools']:>8.2f} of RecTools")


if __name__ == "__main__":
    main()
