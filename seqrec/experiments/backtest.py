"""`seqrec backtest`: judge each day of a log by the model of the day before, and then train on it.

Prequential evaluation: Gama et al. 2013, On Evaluating Stream Learning Algorithms. T targets.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars
import yaml

from seqrec.data.manifest import read_manifest
from seqrec.data.output import show
from seqrec.data.pieces import ends_of, pieces_of
from seqrec.data.prepare import Filters
from seqrec.data.progress import STATUS, Progress, Stage
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources import Table
from seqrec.data.store import EventStore
from seqrec.errors import InputError, StoreError
from seqrec.evaluation.results import read_results
from seqrec.experiments import runner
from seqrec.experiments.grid.cells import MOST_EPOCHS
from seqrec.experiments.grid.result import RESULTS_FOLDER, RUN_FOLDER, hardware_of, read_result, write_result
from seqrec.experiments.report.backtest import POPULAR, RETRAINED, WARM, slice_figures, with_missed, write_backtest
from seqrec.experiments.runner import Slot, alone_in, make_slots
from seqrec.experiments.slices import Plan
from seqrec.files import write_json, write_parquet
from seqrec.models.trained_on import record_in
from seqrec.runs.checkpoints import peek
from seqrec.runs.config_files import find_config
from seqrec.runs.finding import LAST
from seqrec.runs.summary import read_summary
from seqrec.specs import to_spec

SCHEMA = "seqrec-slice-1"
# Files and folders of a backtest, besides those of its slices.
_OWN = ("whole", "log", "store", "judged")


def backtest(plan: Plan, *, folder: str = "backtest", results: str | None = None, device: str = "auto") -> None:
    """Judge each slice of a log by the model of the slice before, append its events, and continue training.

    Each event of a slice is ranked given its user's events before it, also those of the same slice. Items that the
    model does not know are misses. The command may be stopped or killed at any time: started again, it leaves out the
    slices and the trainings that are finished.

    Args:
        plan: See the class.
        folder: Folder of stores, runs and checkpoints, which are needed until the command has ended.
        results: Folder of a small JSON file for each slice, of backtest.json, backtest.md and backtest.png; None is
            `results` in `folder`.
        device: auto, cpu or cuda.

    Raises:
        InputError: if an argument is wrong, the log has no times, results of other settings are there, or a run fails.
        StoreError: if a checkpoint or the store has events of the slice that it is to judge.
    """
    kept = Path(folder, RESULTS_FOLDER) if results is None else Path(results)
    with alone_in(Path(folder)):
        stage = Progress(STATUS).stage("backtest", None, unit="slices")
        work = _Backtest(Path(folder), kept, plan, plan.record(), make_slots(1, device)[0], stage)
        bounds = work.cut()
        stage.total = sum(not work.result(number).is_file() for number in range(1, len(bounds)))
        rows = [work.row(number, bounds) for number in range(1, len(bounds))]
        stage.end()
    table, line, content = write_backtest(kept, rows, plan.words())
    show(table, "", line, **content)


@dataclass
class _Backtest:
    """A backtest while a command works on it. Slice 0 is what the first model is trained on."""

    folder: Path
    results: Path
    plan: Plan
    record: dict[str, Any]
    slot: Slot
    stage: Stage

    def cut(self) -> list[int]:
        """Write the events of each slice to a file, unless that was done, and return the times of `Plan.bounds`."""
        done, whole = self.folder / "cut.json", self.folder / "whole"
        if (known := read_result(done, self.record)) is not None:
            return list(known["bounds"])
        for place in (*self.folder.glob("slice_*"), *(self.folder / name for name in _OWN)):
            shutil.rmtree(place, ignore_errors=True)
        # Counts of events would look into the future. The config's own condition on events stays.
        counts = {name: x for name, x in asdict(Filters()).items() if name not in ("event_filter", "duplicates")}
        self._run("prepare", self.folder / "prepare", {"data": {"store": str(whole), "filters": counts}})
        store = EventStore.open(whole)
        if store.timestamps is None:
            raise InputError("the log has no timestamps, which divide it into slices: name their column in data.source")
        if store.item_columns or store.user_columns:
            raise InputError("data.schema has columns of items or users, which cannot be appended: leave them out")
        frame = store.frame(None, 0, store.num_events)
        bounds = self.plan.bounds(np.sort(frame[TIMESTAMP].to_numpy()))
        numbers = np.searchsorted(bounds, frame[TIMESTAMP].to_numpy(), side="right")
        self._events(0).parent.mkdir()
        for number in range(len(bounds)):
            write_parquet(frame.filter(numbers == number), self._events(number))
        write_result(done, {"schema": SCHEMA, "bounds": bounds, "settings": self.record})
        return bounds

    def row(self, number: int, bounds: Sequence[int]) -> dict[str, Any]:
        """Return the result of a slice: train on all events before it if that is not done, then judge it."""
        file = self.result(number)
        if (found := read_result(file, self.record)) is not None:
            return found
        frame, begin = polars.read_parquet(self._events(number)), bounds[number - 1]
        row: dict[str, Any] = {"schema": SCHEMA, "slice": number, "start": begin, "end": bounds[number]}
        row["events"] = len(frame)
        if len(frame):
            # The newest slice that has events: without new ones, the models are those of before.
            newest = next(place for place in reversed(range(number)) if self._items(place))
            row["append_seconds"] = self._grow(newest)
            arms = [RETRAINED, WARM] if self.plan.retrain and newest else [WARM]
            models = {arm: self._train(newest, arm, begin) for arm in arms}
            known = set[Any]().union(*map(self._items, range(newest)))
            row |= self._judge(number, begin, frame, models, self._items(newest) - known if newest else set())
            for place in range(newest):
                for arm in (RETRAINED, WARM):
                    shutil.rmtree(self._checkpoint(place, arm).parent, ignore_errors=True)
        write_result(file, {**row, "settings": self.record})
        self.stage.complete(1, f"slice {number} of {len(bounds) - 1} is judged")
        return row

    def result(self, number: int) -> Path:
        """Return the file of the result of a slice."""
        return self.results / f"slice_{number:03}.json"

    def _grow(self, newest: int) -> float | None:
        """Bring all slices up to `newest` into the store, and return the seconds of the last one; None if unknown."""
        done, store = self.folder / f"slice_{newest:03}" / "append.json", self.folder / "store"
        if done.is_file():
            return float(json.loads(done.read_text(encoding="utf-8"))["seconds"])
        seconds, there = None, read_manifest(store)["source_files"] if store.exists() else []
        for number in range(newest + 1):
            events = self._events(number)
            if events.name not in [Path(each["name"]).name for each in there] and self._items(number):
                command, words = ("append", ["--input", str(events)]) if number else ("prepare", [])
                seconds = self._run(command, done.with_name("append"), {"data": {"store": str(store)}}, words)
        if seconds is not None:
            write_json(done, {"seconds": seconds})
        return seconds

    def _train(self, newest: int, arm: str, begin: int) -> dict[str, Any]:
        """Return the model of an arm that has seen the events before a time, trained unless that was done."""
        place = self._place(newest, arm)
        done = place / "done.json"
        if done.is_file():
            return dict(json.loads(done.read_text(encoding="utf-8")))
        store = self._store(begin)
        updates = self.plan.updates * store.num_events / read_manifest(self.folder / "whole")["counts"]["events"]
        config: dict[str, Any] = {"data": {"store": str(store.directory), "split": _split(begin)}}
        if arm == WARM and newest:
            before = [each for each in range(newest) if self._checkpoint(each, WARM).is_file()]
            if not before:
                raise InputError(f"{self.folder} has lost its checkpoints: delete {self.results}, too, to start anew")
            updates *= self.plan.share
            config["warm_start"] = {"ckpt": str(self._checkpoint(before[-1], WARM)), "replay": self.plan.replay}
        limits = {"max_epochs": MOST_EPOCHS, "max_time": None, "limit_test_batches": 0}
        config["trainer"] = {**limits, "max_steps": max(1, round(updates))}
        seconds = self._run("fit", place, config)
        summary = read_summary(place / RUN_FOLDER)
        found: dict[str, Any] = {"updates": summary.steps, "seconds": seconds}
        found |= {"train_seconds": summary.seconds["train"]}
        found |= {"ckpt": str(self._checkpoint(newest, arm)), "hardware": hardware_of(summary)}
        write_json(done, found)
        return found

    def _judge(
        self, number: int, begin: int, frame: polars.DataFrame, models: dict[str, dict[str, Any]], fresh: set[Any]
    ) -> dict[str, Any]:
        """Return the figures of a slice that no model has seen; the slice before has brought the `fresh` items."""
        store, judged = self._store(begin), self.folder / "judged"
        for model in models.values():
            if not record_in(peek(Path(model["ckpt"]))).get("newest", math.inf) < begin:
                raise StoreError(
                    f"{model['ckpt']} was trained on events of the slice that it is to judge, from {begin}"
                )
        if self.plan.judged_users is not None:
            frame = of_some_users(frame, self.plan.judged_users, self.plan.seed)
        is_known, has_history = _known_and_judged(store, frame)
        missed, targets = frame.filter(~is_known & has_history), int((is_known & has_history).sum())
        found = {"users": frame.filter(has_history)[USER_ID].n_unique(), "targets": targets + len(missed)}
        found |= {"new_items": frame.filter(~is_known)[ITEM_ID].n_unique(), "targets_of_new_items": len(missed)}
        if not targets:
            return {**found, "models": models}
        place = self.folder / f"slice_{number:03}" / "judge"
        shutil.rmtree(judged, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        # The files of a store never change, so the copy that gets the slice shares them.
        shutil.copytree(store.directory, judged, copy_function=os.link)
        write_parquet(frame.filter(is_known), place / "judged.parquet")
        config = {"data": {"store": str(judged), "split": _split(begin)}}
        self._run("append", place / "append", config, ["--input", str(place / "judged.parquet")])
        runs = []
        for name, model in {**models, POPULAR: {}}.items():
            words = ["--ckpt", model["ckpt"]] if model else ["--model", POPULAR]
            at = place / name.replace(" ", "_")
            seconds = self._run("test" if model else "fit", at, config, words)
            models[name] = {**model, "judge_seconds": seconds}
            run = read_results(at / RUN_FOLDER)
            if len(run.frame) != targets:
                raise InputError(
                    f"{name} was judged by {len(run.frame):,} of {targets:,} events: leave data.targets and limits of "
                    "the test out"
                )
            runs.append(replace(run, name=name, frame=with_missed(run, missed)))
        shutil.rmtree(judged)
        figures = slice_figures(runs, fresh)
        return {**found, "models": {name: {**models[name], **figures[name]} for name in models}}

    def _run(self, command: str, place: Path, config: dict[str, Any], words: Sequence[str] = ()) -> float:
        """Run a command with the configs, the settings and a further config, and return its seconds."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        data = {**config["data"], "seed": self.plan.seed}
        if "filters" not in data:
            # All arguments of the table, because the config may have others of the same class.
            data["source"] = to_spec(Table(str(self._events(0)), missing_values=[]))
            data["filters"] = asdict(Filters())
        config = {"seed_everything": self.plan.seed, "recipe": False, **config, "data": data}
        if command in ("fit", "test"):
            quiet = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
            trainer = {**self.slot.trainer(place, RUN_FOLDER), **quiet, **config.get("trainer", {})}
            config |= {"trainer": trainer, "baselines": {"enabled": False}}
        file, log, began = place / "config.yaml", place / "log.txt", time.monotonic()
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        configs = [word for name in self.plan.configs for word in ("--config", str(find_config(name)))]
        given = [f"--{word}" for word in self.plan.set]
        where = place.relative_to(self.folder)
        words = ["seqrec", command, *configs, *given, "--config", str(file), *words]
        failure = f"seqrec {command} failed"
        runner.run_one(words, log, self.slot, failure, lambda line: self.stage.refresh(f"{where}: {line}"))
        return time.monotonic() - began

    def _store(self, begin: int) -> EventStore:
        """Open the store, all events of which are before a time."""
        store = EventStore.open_unchecked(self.folder / "store")
        assert store.timestamps is not None  # `cut` has refused a log without
        if (newest := ends_of(pieces_of(store.timestamps))[1]) >= begin:
            raise StoreError(
                f"{store.directory} has events up to {newest}, of the slice from {begin} that is to be judged; give "
                "another folder to start anew"
            )
        return store

    def _items(self, number: int) -> set[Any]:
        return set(polars.read_parquet(self._events(number), columns=[ITEM_ID])[ITEM_ID].unique())

    def _events(self, number: int) -> Path:
        return self.folder / "log" / f"slice_{number:03}.parquet"

    def _place(self, number: int, arm: str) -> Path:
        return self.folder / f"slice_{number:03}" / arm.replace(" ", "_")

    def _checkpoint(self, number: int, arm: str) -> Path:
        return self._place(number, arm) / RUN_FOLDER / "checkpoints" / LAST


def of_some_users(frame: polars.DataFrame, most: int, seed: int) -> polars.DataFrame:
    """Return the events of a sample of users, in their order; for equal seeds and users the sample is the same."""
    everyone = frame[USER_ID].unique().sort()
    drawn = np.random.default_rng(seed).permutation(len(everyone))[:most]
    return frame.filter(polars.col(USER_ID).is_in(everyone.gather(drawn).implode()))


def _split(begin: int) -> dict[str, Any]:
    """Return the split that trains on all events before a time, and tests each one from then on."""
    before = min(begin - 0.5, math.nextafter(begin, 0))
    points = {"test_from": float(begin), "validation_from": before, "warm_up": 1, "prequential": True}
    return {"class_path": "seqrec.GlobalTime", "init_args": points}


def _known_and_judged(store: EventStore, frame: polars.DataFrame) -> tuple[polars.Series, polars.Series]:
    """Return whether a store has the item of each event (T,), and whether a known event of its user is before it.

    The events are in the order of a store: user after user, and of each the oldest first.
    """
    is_known = store.item_vocabulary.lookup_series(frame[ITEM_ID]) > 0
    known = frame.with_columns(known=is_known.astype(np.int64)).select(
        (polars.col("known").cum_sum() - polars.col("known")).over(USER_ID)
    )
    lengths = np.append(0, np.diff(store.offsets))[store.user_vocabulary.lookup_series(frame[USER_ID])]
    return polars.Series(is_known), known["known"] + lengths > 0
