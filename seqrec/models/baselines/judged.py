"""Results of baselines, computed once for a store, a split and a protocol, and kept in the store's folder."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import polars
from numpy.typing import NDArray

from seqrec.aliases import __version__
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.progress import STATUS, Progress, print_line
from seqrec.evaluation.list_report import ListReport
from seqrec.evaluation.protocols import Protocol
from seqrec.evaluation.results.file import Results, read_results
from seqrec.evaluation.results.writer import header_of, results_frame
from seqrec.files import PARTIAL, locked, move, write_parquet
from seqrec.models.baselines.baseline import Baseline
from seqrec.models.baselines.training_events import TrainingEvents
from seqrec.models.judging import judge
from seqrec.models.recommender import Recommender
from seqrec.types import SequenceBatch

# Folder of the kept results in that of the store.
FOLDER = "baselines"
# Code that decides a rank: another one gives other results.
_ROOM = Path(__file__).parents[2]
_CODE = ("models/baselines", "evaluation", "data/splits.py", "data/cold_items.py")


@dataclass(frozen=True)
class BaselineResults:
    """The results of baselines for the targets of a stage, all of them, whatever a trainer's limits and processes.

    Args:
        data: The log, its split and its filter of targets.
        protocol: Ranks the targets. Its split, order and targets become those of the data. Baselines read no time of
            a request, so their results are those of the protocol without it.
        stage: "validate" or "test".
    """

    data: SequenceDataModule
    protocol: Protocol
    stage: str

    def of(self, baselines: Sequence[type[Baseline]]) -> list[Results]:
        """Return the results of baselines with their default arguments, from the store's folder if they are there.

        What is not there is computed by one process at a time, while others wait, and kept. It is not kept if the
        folder cannot be written, or if split or candidates are classes from outside of this package, whose code may
        change. A file that is damaged is deleted, and its results are computed again.
        """
        found = {baseline: self._read(baseline) for baseline in baselines}
        missing = [baseline for baseline in baselines if found[baseline] is None]
        if not missing:
            return [results for results in found.values() if results is not None]
        with ExitStack() as stack:
            keeps = self._is_described
            try:
                if keeps:
                    stack.enter_context(locked(self._folder / ".lock"))
            except OSError as error:
                print_line(f"note: results of baselines are not kept, as {self._folder} cannot be written: {error}")
                keeps = False
            started = perf_counter()
            for baseline in missing:
                # Another process may have computed it in the meantime.
                found[baseline] = (self._read(baseline) if keeps else None) or self._judge(baseline, keep=keeps)
        names = ", ".join(baseline.__name__ for baseline in missing)
        kept = f"; kept in {self._folder}" if keeps else ""
        print_line(f"baselines: {names} counted and judged in {perf_counter() - started:.1f} s{kept}")
        return [results for results in found.values() if results is not None]

    @cached_property
    def _terms(self) -> Protocol:
        return self.protocol.on(self.data.split, self.data.event_order, targets=self.data.targets)

    @property
    def _folder(self) -> Path:
        return self.data.store.directory / FOLDER

    @property
    def _is_described(self) -> bool:
        """Whether the key changes whenever the results do."""
        split = self.data.split
        parts = (self._terms.candidates, split, getattr(split, "split", split))
        return all(type(part).__module__.startswith("seqrec.") for part in parts)

    def _stem(self, baseline: type[Baseline]) -> str:
        """Return the start of the name of a baseline's file: a digest of all that decides its ranks."""
        store = self.data.store
        content = {
            "version": __version__,
            "code": _digest_of_code(),
            "files": {name: entry["sha256"] for name, entry in store.manifest["files"].items()},
            "protocol": self._terms.describe(),
            "stage": self.stage,
            "max_length": self.data.max_length,
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{baseline.__name__}-{self.stage}-{digest[:16]}"

    def _read(self, baseline: type[Baseline]) -> Results | None:
        """Return what is kept of a baseline; None if there is nothing, or it is damaged."""
        for file in self._folder.glob(f"{self._stem(baseline)}-*.parquet"):
            try:
                if file.stem.endswith(_digest(file)):
                    results = read_results(file)
                    return Results(baseline.__name__, results.header, results.frame)
            except OSError as error:
                print_line(f"note: {file} cannot be read ({error.strerror}): {baseline.__name__} is judged again")
                continue
            print_line(f"note: {file} is damaged (its SHA-256 differs): {baseline.__name__} is judged again")
            with suppress(OSError):
                file.unlink()
        return None

    def judge_lists(self, baselines: Sequence[type[Baseline]], lists: ListReport, tested: Recommender) -> None:
        """Judge the lists of baselines as those of the tested model; unlike results, these values are not kept."""
        lists.judge_others(map(self._counted, baselines), tested, self._alone, self._batches)

    def _counted(self, baseline: type[Baseline]) -> Baseline:
        """Return a baseline that has counted the training part."""
        model = baseline(self._alone.num_items)  # type: ignore[call-arg]  # of all baselines
        model.protocol = self._terms
        model.count(self._training)
        return model

    def _batches(self) -> Iterable[SequenceBatch]:
        data = self._alone
        return data.val_dataloader() if self.stage == "validate" else data.test_dataloader()

    def _judge(self, baseline: type[Baseline], *, keep: bool) -> Results:
        """Rank all targets by a baseline, and keep the results."""
        data, protocol, model = self._alone, self._terms, self._counted(baseline)
        times = data.first_event_times if protocol.candidates.needs_first_times else None
        batches: Any = self._batches()
        frames = [
            results_frame(judged, data.store, self._item_counts)
            for judged in Progress(STATUS).track(
                f"judging {model.title}",
                judge(model, batches, item_counts=self._item_counts, first_times=times),
                lambda judged: 1,
                len(batches),
                unit="batches",
            )
        ]
        frame = polars.concat(frames).sort("user_id", "item_id", "timestamp")
        results = Results(baseline.__name__, header_of(model.title, protocol, self._item_counts), frame)
        if keep:
            try:
                self._keep(results, self._stem(baseline))
            except OSError as error:
                print_line(f"note: the results of {baseline.__name__} are not kept: {error}")
        return results

    def _keep(self, results: Results, stem: str) -> None:
        partial = self._folder / f"{stem}.{os.getpid()}{PARTIAL}"
        try:
            write_parquet(results.frame, partial, metadata=results.header.as_metadata())
            move(partial, self._folder / f"{stem}-{_digest(partial)}.parquet")
        finally:
            partial.unlink(missing_ok=True)

    @cached_property
    def _alone(self) -> SequenceDataModule:
        """The data without a trainer: all users, in this process."""
        data = copy.copy(self.data)
        data.trainer, data.num_workers = None, 0
        return data

    @cached_property
    def _training(self) -> TrainingEvents:
        return TrainingEvents.of(self.data.store, self.data.split)

    @cached_property
    def _item_counts(self) -> NDArray[np.int64]:
        return self.data.train_item_counts()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


@cache
def _digest_of_code() -> str:
    """Return a digest of the code that ranks are from, which a version number in development does not tell apart."""
    places = [_ROOM / place for place in _CODE]
    files = [file for place in places for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()
