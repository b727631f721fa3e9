"""The model that answers requests, whether it answers, and how that of another checkpoint takes over from it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from fastapi import FastAPI

from seqrec.catalogue.candidates import Candidates
from seqrec.catalogue.item_columns import ItemColumns
from seqrec.catalogue.recommend import item_ids_of, trained_length
from seqrec.errors import InputError
from seqrec.inference.sessions import Event, SessionRecommender, StateStore, StoreSizes
from seqrec.inference.sessions.user_state import reads_times
from seqrec.models import Recommender
from seqrec.serving.answers import RefusedError
from seqrec.serving.batcher import Batcher
from seqrec.serving.choices import Choices
from seqrec.serving.guard import Gate
from seqrec.serving.history_work import HistoryWork
from seqrec.serving.limits import Limits
from seqrec.serving.metrics import Metrics
from seqrec.serving.work import Count, Probe, SessionWork, Sizes, row_bytes_of

_LOG = logging.getLogger(__name__)
# Longest wait for a count; the last one is taken then.
COUNT_SECONDS = 0.05


class Loaded(NamedTuple):
    """A model with its sessions, and what requests to it may name; `create_app` explains the fields."""

    recommender: SessionRecommender
    candidates: Mapping[str, Candidates] | None = None
    columns: ItemColumns | None = None
    titles: ItemColumns | None = None
    checkpoint: str | None = None


class NewState(NamedTuple):
    """The session state that a request may change."""

    row_bytes: int
    max_bytes: int

    def check(self, events: Sequence[Event]) -> None:
        """Refuse a request whose users' states have more bytes together."""
        users = len({event.user for event in events})
        if users > 1 and users * self.row_bytes > self.max_bytes:
            most = max(1, self.max_bytes // self.row_bytes)
            raise RefusedError(
                413,
                f"events: the states of {users:,} users take {users * self.row_bytes:,} bytes, and a request may have "
                f"{self.max_bytes:,}; send {most:,} users at a time",
            )


class Served:
    """A model that answers requests, and what only requests to this model need.

    Raises:
        InputError: if candidates are of another catalogue.
    """

    def __init__(self, loaded: Loaded, limits: Limits, metrics: Metrics) -> None:
        self.recommender, self.model = loaded.recommender, loaded.recommender.model
        self.titles, self.checkpoint = loaded.titles, loaded.checkpoint
        self.num_items = self.model.scorer().num_items
        self.choices = Choices(item_ids_of(self.model), loaded.candidates or {}, loaded.columns)
        row_bytes = row_bytes_of(self.recommender)
        self.new_state = NewState(row_bytes, limits.max_request_state_bytes)
        self.size_of = Sizes(row_bytes, trained_length(self.model))
        self.do_sessions = SessionWork(self.recommender, metrics)
        self.do_histories = HistoryWork(self.model, metrics)

    def release(self) -> None:
        """Free the memory of the model and its users' states, after another one took over."""
        self.choices.close()
        # Objects that refer to each other keep the model until Python next searches for garbage.
        self.model.to("meta")
        self.recommender.release()


class Health:
    """Asks the model's threads, at most one question of a kind at a time, and waits `ready_seconds` for an answer."""

    def __init__(self, sessions: Batcher, histories: Batcher, *, ready_seconds: float) -> None:
        self._sessions, self._histories = sessions, histories
        self._ready_seconds = ready_seconds
        self._probe: asyncio.Future[Any] | None = None
        self._count: asyncio.Future[Any] | None = None
        self._sizes = StoreSizes(0)

    async def check_ready(self) -> None:
        """Raise a `RefusedError` if a thread does not answer in time, or the sessions cannot be read.

        Its reason has no details, as clients need no token to ask.
        """
        if self._probe is None or self._probe.done():
            probes = self._sessions.submit(Probe()), self._histories.submit(Probe())
            self._probe = asyncio.gather(*probes, return_exceptions=True)
        # Another request may ask anew before this one continues.
        probe = self._probe
        await asyncio.wait([probe], timeout=self._ready_seconds)
        if not probe.done():
            raise RefusedError(503, f"the model has not answered for {self._ready_seconds:g} s", {"Retry-After": "1"})
        if any(isinstance(outcome, BaseException) for outcome in probe.result()):
            raise RefusedError(503, "the sessions cannot be read; see the server's log", {"Retry-After": "1"})

    async def sizes(self) -> StoreSizes:
        """Return how much the store of sessions keeps as last counted; a count may still be under way."""
        if self._count is None or self._count.done():
            self._count = asyncio.ensure_future(self._counted())
        await asyncio.wait([self._count], timeout=COUNT_SECONDS)
        return self._sizes

    async def _counted(self) -> None:
        # `check_ready` reports errors.
        with contextlib.suppress(InputError):
            self._sizes = await self._sessions.submit(Count())


class Serving:
    """The threads in which the model that is served does the work of requests; another model can take over.

    One model answers a request from its beginning to its end. A model takes over when the requests in progress have
    been answered, and those that come meanwhile wait at the gate. So only one model at a time writes sessions.

    Args:
        loaded: The first model.
        limits: Limits of requests.
        metrics: Counts of the server.
        load: Given the model that is served, loads the one that takes over, in a thread; None if none ever does.

    Attributes:
        now: The model that is served.
        max_k: Most items that a request may ask for.
        gate: The gate that requests to the model pass.
        reloads: How often another model took over.
    """

    def __init__(
        self, loaded: Loaded, limits: Limits, metrics: Metrics, load: Callable[[Recommender], Loaded] | None
    ) -> None:
        self.now = Served(loaded, limits, metrics)
        self.max_k = min(limits.max_k, self.now.num_items)
        self.gate, self.reloads = Gate(), 0
        self._load, self._limits, self._metrics = load, limits, metrics
        self._is_loading = False
        self._signalled: asyncio.Task[None] | None = None
        batching: dict[str, Any] = {
            "max_batch": limits.max_batch,
            "wait_seconds": limits.batch_wait_ms / 1000,
            "max_size": limits.max_batch_events,
            "size_of": lambda work: self.now.size_of(work),
        }
        self.sessions = Batcher(lambda works: self.now.do_sessions(works), **batching)
        # A separate thread, so that users with a session do not wait for long histories.
        self.histories = Batcher(lambda works: self.now.do_histories(works), **batching)
        self.health = Health(self.sessions, self.histories, ready_seconds=limits.ready_seconds)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start the threads and, in the main thread, reload at SIGHUP; stop them in the end."""
        batchers = self.sessions, self.histories
        for batcher in batchers:
            batcher.start()
        if self._load is not None and hasattr(signal, "SIGHUP"):
            with contextlib.suppress(ValueError, RuntimeError):  # another thread than the main one
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)
        yield
        for batcher in batchers:
            await batcher.close()
        self.now.choices.close()

    async def reload(self) -> float:
        """Load another model, let it take over, and return for how many seconds requests waited.

        The weights of the model before are released; it can do no work afterwards.

        Raises:
            RefusedError: if a model is being loaded already, or does not fit into memory.
            InputError: if it cannot be loaded, or cannot take over. The model before continues to answer.
        """
        if self._is_loading:
            raise RefusedError(409, "a checkpoint is being loaded already; /health shows which one answers")
        self._is_loading = True
        try:
            new = await asyncio.to_thread(self._loaded)
            begin = time.perf_counter()
            async with self.gate.closed():
                before, self.now = self.now, new
                self.reloads += 1
            seconds = time.perf_counter() - begin
            await asyncio.to_thread(_free, before, new)
            return seconds
        finally:
            self._is_loading = False

    def _loaded(self) -> Served:
        assert self._load is not None
        before = self.now
        try:
            new = Served(self._load(before.model), self._limits, self._metrics)
            if new.num_items < self.max_k:
                raise InputError(
                    f"the checkpoint has {new.num_items:,} items, and requests may ask for {self.max_k:,}; start the "
                    f"server again with it, or with --max_k {new.num_items}"
                )
        except BaseException as error:
            # The new model may have described the store as its own.
            before.recommender.take_over()
            if not _is_out_of_memory(error):
                raise
            reason = f"the checkpoint does not fit into memory, next to the one that answers: {error}"
            raise RefusedError(503, reason) from error
        return new

    def _hang_up(self) -> None:
        self._signalled = asyncio.create_task(self._reload_at_signal())

    async def _reload_at_signal(self) -> None:
        try:
            seconds = await self.reload()
        except (InputError, RefusedError) as error:
            _LOG.warning("SIGHUP: %s; the checkpoint before continues to answer", error)
        except Exception:
            _LOG.exception("SIGHUP: the checkpoint before continues to answer")
        else:
            name = f"{self.now.model.title} from {self.now.checkpoint}"
            print(f"serving {name}; requests waited {seconds:.3f} s", flush=True)


def check_successor(before: Recommender, after: Recommender, store: StateStore) -> None:
    """Refuse a model that cannot continue the sessions of another one from their events.

    Raises:
        InputError: if the store keeps no events, no catalogue of the two begins with the other, or the new model reads
            times or columns of events that the one before does not, so that they were not kept.
    """
    if not getattr(store, "keep_events", 0):
        raise InputError(
            "sessions.keep_events=0: another model makes sessions again from their events, and this store keeps none; "
            "start the server again, with --sessions.keep_events 10000"
        )
    old, new = item_ids_of(before), item_ids_of(after)
    shared = min(len(old), len(new))
    if old.first(shared).digest() != new.first(shared).digest():
        raise InputError(
            f"the checkpoint's {len(new):,} items are not the {len(old):,} items of the one that answers, followed by "
            "new ones; start the server again if it is the right checkpoint"
        )
    kept = {(column.name, column.kind, column.width) for column in before.event_columns}
    missing = [each for each in after.event_columns if (each.name, each.kind, each.width) not in kept]
    further = [f"the column {each.name!r}" for each in missing]
    further += ["times"] if reads_times(after) and not reads_times(before) else []
    if further:
        raise InputError(
            f"the checkpoint reads {' and '.join(further)} of events, which are not kept for the one that answers"
        )


def _is_out_of_memory(error: BaseException) -> bool:
    # torch raises a plain RuntimeError if a CPU has no memory.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        type(error) is RuntimeError and "allocate memory" in str(error)
    )


def _free(before: Served, new: Served) -> None:
    # The new model answers already, so an error must not look like a refusal.
    try:
        if before.model is new.model:
            before.choices.close()
        else:
            before.release()
    except Exception:
        _LOG.exception("the new model answers, but the memory of the one before was not freed")
