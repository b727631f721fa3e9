"""Runs of grids that train nothing: what a run leaves in its folder, and a runner that counts its calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars
import yaml

from seqrec.evaluation.results import Header
from seqrec.runs import Summary

USERS = 60


def write_run(
    run: Path,
    *,
    model: str = "SASRec",
    hits: float = 0.5,
    seed: int = 0,
    users: int = USERS,
    protocol: str = "full-seenout-tiemean-loo",
    steps: Sequence[int] = (20, 40, 60, 80),
    best: tuple[int, float] | None = (60, 0.1),
    ended_by: str = "budget",
    seconds: float = 10.0,
    epochs: int = 4,
    error: str | None = None,
) -> None:
    """Write what a run leaves that is tested, and whose model ranks about `hits` of the targets among the ten best.

    Each validation is at the end of an epoch, except for those after `epochs`; `best` are update and value of the
    best one.
    """
    run.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    better = np.where(rng.random(users) < hits, rng.integers(0, 10, users), 40)
    header = Header(model, protocol, {}, "achievable", 100, 10, 2)
    zeros = np.zeros(users, dtype=np.int64)
    ids = {"user_id": np.arange(users), "item_id": np.arange(users)}
    columns = {"better": better, "tied": zeros, "history_length": zeros + 9, "item_train_events": zeros}
    frame = polars.DataFrame({**ids, **columns, "repeated": zeros > 0, "timestamp": zeros})
    frame.write_parquet(run / "test_results.parquet", metadata=header.as_metadata())
    ndcg = float(np.where(better < 10, 1 / np.log2(better + 2.0), 0).mean())
    metrics = {"HR@10": float((better < 10).mean()), "NDCG@10": ndcg}
    judged = {"protocol": protocol, "users": users, "models": {model: metrics, "Markov": {}}}
    (run / "test_metrics.json").write_text(json.dumps(judged))
    lines = ["epoch,step,train_loss_epoch,val_HR@10,val_NDCG@10"]
    for epoch, step in enumerate(steps):
        value = best[1] if best and step == best[0] else 0.01
        lines += [f"{epoch},{step - 1},,0.2,{value}", *([f"{epoch},{step - 1},1.0,,"] if epoch < epochs else [])]
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    phases = dict.fromkeys(("train", "validate", "test"), seconds)
    Summary(
        status="failed" if error else "finished",
        error=error,
        model=model,
        epochs=epochs,
        steps=steps[-1],
        events=1000,
        tokens=1000,
        seconds=phases,
        events_per_second=1000 / seconds,
        tokens_per_second=100.0,
        peak_memory={"host": 200 << 20, "device": None},
        parameters=dict.fromkeys(("item_table", "encoder", "other", "total"), 1000),
        best=best and {"metric": "val_NDCG@10", "value": best[1], "step": best[0], "epoch": 0},
        validation=None,
        test=None,
        protocol=protocol,
        seeds={},
        versions={"seqrec": "0", "torch": "9"},
        hardware={"cpu": "a CPU", "threads": 1, "cores": 2, "gpus": []},
        job={"device": "cpu"},
        git=None,
        command="",
        resume=None,
        resumed_from=None,
        started="",
        updated="",
        ended={"by": ended_by, "step": steps[-1]},
    ).write(run)


@dataclass
class Process:
    """A process that ends when `is_over` returns True."""

    returncode: int = 0
    is_over: Callable[[], bool] = lambda: True

    def poll(self) -> int | None:
        """Return the status, as a process does."""
        return self.returncode if self.is_over() else None


@dataclass
class FakeRunner:
    """Stands in for `runner.start`: writes a run for each command, and keeps the command and the cell's place.

    Attributes:
        outcome: Returns arguments of `write_run` for a command, by the cell's place and the command's options.
        calls: Command and place of each, such as "fit ml_1m/50/SASRec/seed_0", without `prepare`.
        options: Options of each call, by place.
        stop_at: Number of the call that raises KeyboardInterrupt after it has begun, as a kill would; None for none.
    """

    outcome: Callable[[str, dict[str, str]], dict[str, Any]] = lambda place, options: {}
    calls: list[str] = field(default_factory=list)
    options: dict[str, dict[str, str]] = field(default_factory=dict)
    stop_at: int | None = None

    def __call__(self, words: Sequence[str], log: Path, environment: dict[str, str]) -> Process:
        """Run a command."""
        log.write_text("error: it failed\n")
        if words[1] == "prepare":
            return Process()
        parts = log.parent.parts
        place = "/".join(parts[parts.index("cells") + 1 :])
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        self.calls.append(f"{words[1]} {place}")
        self.options[place] = options
        config = yaml.safe_load((log.parent / "cell.yaml").read_text())
        (log.parent / "run" / "checkpoints").mkdir(parents=True)
        if self.stop_at == len(self.calls):
            raise KeyboardInterrupt
        assert config["trainer"]["logger"]["init_args"]["save_dir"] == str(log.parent)
        given = self.outcome(place, options)
        write_run(log.parent / "run", **given)
        for name in ("best", "last") if words[1] == "fit" else ():
            (log.parent / "run" / "checkpoints" / f"{name}.ckpt").touch()
        return Process(1 if given.get("error") else 0)
