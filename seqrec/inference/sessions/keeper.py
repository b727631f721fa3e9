"""The reading of users' sessions from a store, and their writing after further events."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.data.columns import Column
from seqrec.data.event_columns import EventColumn
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import DamagedSessionError, SessionStoreError
from seqrec.inference.sessions.entries import HistoryOf, Id, UserHistory, history_columns, history_times
from seqrec.inference.sessions.item_rows import ItemRows
from seqrec.inference.sessions.kept_events import MERGED, KeptEvents, chunk, joined, read_chunks
from seqrec.inference.sessions.session import FORMAT, OLD_FORMATS, REMEDY, Session, observed
from seqrec.inference.sessions.slab import KeptState
from seqrec.inference.sessions.stores import Behind, Chunk, LiveStore, SessionStore, StateStore
from seqrec.inference.sessions.user_state import UserState

_LOG = logging.getLogger(__name__)


class KnownEvents(NamedTuple):
    """Internal item ids (L,) of a user's events, and their times and columns if the model reads them."""

    item_ids: NDArray[np.int64]
    times: NDArray[np.int64] | None
    columns: dict[str, Column]


class Flaw(NamedTuple):
    """Why a session needs repair, and the number of events after it."""

    reason: str
    behind: int


@dataclass(kw_only=True, eq=False)
class SessionKeeper:
    """Reads sessions from a store, and writes them back after further events.

    A session that is damaged or of another model is made again from the user's events, if the store keeps them.

    Args:
        store: The store.
        user_state: Makes the states that the model continues from.
        items: The log's item ids.
        users: The log's user ids, for models with vectors of users; None if the model does not distinguish users.
        max_seen: Most seen items that are kept, the last ones; None keeps all.
        history_of: Finds histories of users without a session; None finds none.
        reads_times: Whether the model reads the time of events.
        event_columns: Columns of events that it reads.

    Attributes:
        lock: Held from reading sessions to writing them back.
        rebuilt: Number of sessions that were made again from their events.
        others: Number of sessions in the store when this model took it over from another; 0 if it was this model's.

    Raises:
        SessionStoreError: if the store belongs to another model and has no events, or cannot be used.
    """

    store: StateStore
    user_state: UserState
    items: Vocabulary
    users: Vocabulary | None
    max_seen: int | None
    history_of: HistoryOf | None
    reads_times: bool = False
    event_columns: Sequence[EventColumn] = ()
    lock: threading.RLock = field(default_factory=threading.RLock, init=False)
    rebuilt: int = field(default=0, init=False)
    others: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        # Claim a new store for this model. A store of another model needs events.
        catalogue = self.items.digest()
        ours = {"format": FORMAT, "vocabulary": catalogue}
        description = self.user_state.describe()
        text = json.dumps({**ours, **description}, separators=(",", ":"))
        self._text = text.encode()
        model = hashlib.sha256(json.dumps(description).encode()).digest()[:8]
        self._made_by = model + bytes.fromhex(catalogue)
        # Looked up once, as such a question to a protocol takes longer than a user's step.
        self._live = self.store if isinstance(self.store, LiveStore) else None
        self._events = self.store if isinstance(self.store, SessionStore) else None
        self._keep_events = 0 if self._events is None else self._events.keep_events
        kept = self.store.claim(text.encode())
        # Sessions that do not name their model are of the one of an old description.
        self._fits = False
        if kept == text.encode():
            return
        try:
            found = json.loads(kept)
            theirs = {name: found.pop(name) for name in ours}
            is_old = theirs["format"] in OLD_FORMATS
            theirs["format"] = FORMAT if is_old else theirs["format"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SessionStoreError("the store's description cannot be read; begin with a new store") from error
        try:
            if theirs != ours:
                raise SessionStoreError(
                    f"the store is of another catalogue or version: it has {theirs}, the model {ours}; give each "
                    "model a store of its own, and observe the events again"
                )
            self.user_state.check(found)
            self._fits = is_old
        except SessionStoreError as error:
            if theirs["format"] != FORMAT:
                raise
            if self._events is None or not self._events.sizes().can_rebuild:
                raise SessionStoreError(
                    f"{error}; keep_events, which SQLiteStore and RedisStore have, would have kept the events in it"
                ) from error
            self.others = self._events.sizes().users
            self.take_over()
            _LOG.info("the store is of another model: its sessions are made again from their events when needed")

    def take_over(self) -> None:
        """Describe the store as this model's."""
        if self._events is not None:
            self._events.redescribe(self._text)

    def stored(self, keys: Sequence[bytes], users: Sequence[Id]) -> list[Session | None]:
        """Return the sessions in the store; None for users without one.

        Raises:
            DamagedSessionError: if a session is damaged or of another model, and cannot be made again from its events;
                its `index` is the user's place.
            SessionStoreError: if the store cannot be read.
        """
        found, flaws = self._read(keys, users)
        if flaws:
            with self.lock:
                # Another thread may have made them meanwhile.
                found, flaws = self._read(keys, users)
                self._rebuild(keys, users, found, flaws)
        return found

    def rows(self, keys: Sequence[bytes]) -> Sequence[Any]:
        """Return what the store has for each key, bytes or objects; None if it has nothing."""
        return self.store.get_many(keys) if self._live is None else self._live.get_live(keys)

    def _read(self, keys: Sequence[bytes], users: Sequence[Id]) -> tuple[list[Session | None], dict[int, Flaw]]:
        """Return the sessions that can be read, and what is wrong at some places."""
        found: list[Any] = list(self.rows(keys))
        flaws = {}
        row: Any
        for index, row in enumerate(found):
            if row is None or (type(row) is Session and row.made_by == self._made_by):
                continue
            session: Session | None = row if isinstance(row, Session) else None
            user, behind = users[index], 0
            if isinstance(row, Behind):
                row, behind = row.session, row.num_events or 0
                flaws[index] = Flaw(f"the session of user={user!r} lacks events; {REMEDY}", behind)
            try:
                session = Session.from_bytes(row, keys[index], user, index) if isinstance(row, bytes) else session
            except DamagedSessionError as error:
                flaws[index] = Flaw(str(error), behind)
            if session is not None and not session.made_by and self._fits:
                session = replace(session, made_by=self._made_by)
            if session is not None and session.made_by != self._made_by:
                flaws[index] = Flaw(f"the session of user={user!r} is of another model; {REMEDY}", behind)
            found[index] = session
        return found, flaws

    def kept_events(self, key: bytes, user: Id) -> KeptEvents | None:
        """Return the events of a user that the store keeps; None if it keeps none."""
        parts = read_chunks(key, [] if self._events is None else self._events.events_of([key])[0])
        if parts is None:
            raise DamagedSessionError(f"the kept events of user={user!r} are damaged; {REMEDY}", 0)
        return joined(parts) if parts else None

    def _rebuild(
        self, keys: Sequence[bytes], users: Sequence[Id], found: list[Session | None], flaws: dict[int, Flaw]
    ) -> None:
        """Make the sessions at some places again, write them, and put them into `found`."""
        # A user's first place.
        places = {keys[place]: place for place in reversed(flaws)}
        kept = [[]] * len(places) if self._events is None else self._events.events_of(list(places))
        made: dict[bytes, Session] = {}
        further: dict[bytes, list[KeptEvents]] = {}
        others: dict[bytes, Session | None] = {}
        errors = []
        for (key, place), contents in zip(places.items(), kept, strict=True):
            parts, old, (reason, behind) = read_chunks(key, contents), found[place], flaws[place]
            is_whole = old is None or (
                parts and parts[0].begin <= old.kept_from + behind and parts[-1].end == old.num_events + behind
            )
            without = self._not_kept(parts or ())
            if not parts or not is_whole or without:
                lack = "some of its events are damaged or lost" if contents else "none of its events are kept"
                lack = f"its events are kept without their {without}, which the model reads" if without else lack
                errors.append(DamagedSessionError(f"{reason}, as {lack}", place))
                continue
            later = [part for part in parts if old is not None and part.begin >= old.num_events]
            if old is not None and old.made_by == self._made_by and sum(len(part.items) for part in later) == behind:
                # In the steps in which they were observed.
                made[key], further[key] = old, later
                continue
            made[key], further[key] = Session(b"", made_by=self._made_by), [joined(parts)]
            others[key] = None if old is None else self._advanced(old, later)
        self._observe_again(made, further, {key: users[place] for key, place in places.items()})
        for key, past in others.items():
            made[key] = self._completed(made[key], past, further[key][0])
        if made:
            self._put(list(made.items()))
        self.rebuilt += len(others)
        for place, key in enumerate(keys):
            found[place] = made.get(key, found[place])
        if errors:
            raise min(errors, key=lambda error: error.index)

    def _not_kept(self, parts: Sequence[KeptEvents]) -> str | None:
        """Return what kept events lack that the model reads."""
        if self.reads_times and any(part.times is None for part in parts):
            return "times"
        names = (column.name for column in self.event_columns)
        return next((f"column {x!r}" for x in names if any(x not in (part.columns or ()) for part in parts)), None)

    def _observe_again(
        self, sessions: dict[bytes, Session], further: dict[bytes, list[KeptEvents]], users: dict[bytes, Id]
    ) -> None:
        """Observe each user's further events, one part after another; users without a known item keep no state."""
        for number in range(max(map(len, further.values()), default=0)):
            parts = {key: own[number] for key, own in further.items() if number < len(own)}
            known = {
                key: self._known_events(users[key], UserHistory(part.items, None, part.times, part.columns))
                for key, part in parts.items()
            }
            some = [key for key, own in known.items() if len(own.item_ids)]
            user_ids, before = self.user_ids([users[key] for key in some]), [sessions[key].state for key in some]
            states: dict[bytes, KeptState] = {}
            if some:
                rows = rows_of([known[key] for key in some])
                states = dict(zip(some, self.user_state.extend(before, rows, user_ids), strict=True))
            for key, part in parts.items():
                state = states.get(key, b"")
                sessions[key] = self._observed(sessions[key], part, known[key].item_ids, state, self._keep_events)

    def _advanced(self, old: Session, later: Sequence[KeptEvents]) -> Session:
        """Return another model's session after events, with its state from before them."""
        for part in later:
            old = self._observed(old, part, self.items.lookup(part.items), old.state, part.end)
        return old

    def _observed(
        self, old: Session, part: KeptEvents, item_ids: NDArray[np.int64], state: KeptState, keep_events: int
    ) -> Session:
        """Return a session after kept events, whose items have these internal ids."""
        items, time, ids = item_ids.astype(np.int32).tobytes(), part.newest_time, part.event_ids
        (new,) = observed([old], [items], [time], [state], [ids], self.max_seen, keep_events)
        return new

    def _completed(self, new: Session, past: Session | None, events: KeptEvents) -> Session:
        """Return a session that was made from events, with what is known of the time before them."""
        if past is None:
            return replace(new, num_events=events.end, kept_from=events.begin)
        # Of events that are not kept any more, too.
        seen = past.seen if past.made_by[8:] == self._made_by[8:] else new.seen
        return replace(past, state=new.state, seen_before=seen, newer=b"", made_by=self._made_by)

    def sessions(self, keys: Sequence[bytes], users: Sequence[Id]) -> list[Session | None]:
        """Return the sessions, after making those of users whose history `history_of` knows."""
        found = self.stored(keys, users)
        if self.history_of is None or all(session is not None for session in found):
            return found
        with self.lock:
            self.begin(keys, users, self.history_of)
            return self.stored(keys, users)

    def begin(self, keys: Sequence[bytes], users: Sequence[Id], history_of: HistoryOf) -> int:
        """Make sessions of users who have none, from their histories, and return how many; keys may repeat."""
        new_users, events, newest = {}, [], []
        with self.lock:
            for place, (key, row) in enumerate(zip(keys, self.rows(keys), strict=True)):
                if row is not None or key in new_users:
                    continue
                history = history_of(users[place])
                if history is None or not len(history.items):
                    continue
                known = self._known_events(users[place], history, place)
                if len(known.item_ids):
                    new_users[key] = users[place]
                    events.append(known)
                    times = () if history.times is None else history.times
                    newest.append(int(times[-1]) if len(times) else history.newest_time)
            if new_users:
                sessions = [None] * len(new_users)
                self.extend(list(new_users), list(new_users.values()), sessions, newest, rows_of(events))
        return len(new_users)

    def extend(
        self,
        keys: Sequence[bytes],
        users: Sequence[Id],
        sessions: Sequence[Session | None],
        newest_times: Sequence[int | None],
        item_ids: ItemRows,
        event_ids: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Write sessions after further events, at least one per user; hold the lock since they were read.

        Args:
            keys: Distinct keys.
            users: The same users.
            sessions: The sessions that were read.
            newest_times: The latest time of all events of each user, with the further ones.
            item_ids: Further events of each user.
            event_ids: Digests of the events' ids of each user; None if none has an id.
        """
        ids = event_ids or [()] * len(keys)
        before = [Session(b"", made_by=self._made_by) if session is None else session for session in sessions]
        states = self.user_state.extend([session.state for session in before], item_ids, self.user_ids(users))
        new = item_ids.int32_bytes()
        after = observed(before, new, newest_times, states, ids, self.max_seen, self._keep_events)
        rows = list(zip(keys, after, strict=True))
        store = self._live
        if self._events is None or (store is not None and not self._keep_events and not store.sizes().event_bytes):
            self._put(rows)
            return
        kept = item_ids.newest(self._keep_events)
        found = self.items.external_ids(kept.flat)
        names: list[Id] = found.tolist() if isinstance(found, np.ndarray) else list(found)
        chunks = []
        for (key, session), (first, last), own in zip(rows, pairwise(kept.offsets), ids, strict=True):
            end, count = session.num_events, last - first
            times = None if kept.times is None else kept.times[first:last].tolist()
            columns = {x.name: x.external(kept.columns[x.name].values[first:last]) for x in self.event_columns}
            events: Any = end - count, names[first:last], session.newest_time, own, times, columns or None
            # A multiple of the number lies among these events.
            if end % MERGED < count < end:
                events = self._merged(key, KeptEvents(*events))
            chunks.append(chunk(key, *events))
        self._put(rows, chunks)

    def _put(self, rows: Sequence[tuple[bytes, Session]], chunks: Sequence[Chunk] = ()) -> None:
        """Write sessions and events."""
        if self._live is not None:
            self._live.put_many(rows, chunks)
            return
        content = [(key, session.to_bytes(key)) for key, session in rows]
        if self._events is not None:
            self._events.put_many(content, chunks)
        else:
            self.store.put_many(content)

    def _merged(self, key: bytes, events: KeptEvents) -> KeptEvents:
        """Return further events of a key, together with the last chunks before them if these are many."""
        last = events.begin // MERGED * MERGED
        if last < events.begin and events.end - last >= MERGED:
            assert self._events is not None
            parts = [read_chunks(key, [content]) for content in self._events.events_of([key])[0]]
            newest = [*(part[0] for part in parts if part is not None and part[0].begin >= last), events]
            if all(before.end == after.begin for before, after in pairwise(newest)):
                return joined(newest)
        return events

    def user_ids(self, users: Sequence[Id]) -> Tensor:
        """Return (B,) internal ids, 0 for users that training did not know or if the model has no user vectors."""
        if self.users is None:
            return torch.zeros(len(users), dtype=torch.int64)
        return torch.from_numpy(self.users.lookup(users))

    def _known_events(self, user: Id, history: UserHistory, index: int = 0) -> KnownEvents:
        """Return a history's events without those of unknown items; `index` names the user in a `BatchEntryError`."""
        found = self.items.lookup(history.items)
        times, whose = None, f"the history of user={user!r}"
        if self.reads_times:
            times = history_times(history.times, len(found), whose, index)
        columns = history_columns(history.columns, self.event_columns, len(found), whose, index)
        known = found[found > 0]
        if len(known) < len(found):
            times = None if times is None else times[found > 0]
            columns = {name: column.taken(found > 0) for name, column in columns.items()}
            _LOG.warning(
                "left out %d of %d events in the history of user=%r, with items that the model was not trained on",
                len(found) - len(known),
                len(found),
                user,
            )
        return KnownEvents(known, times, columns)


def rows_of(events: Sequence[KnownEvents]) -> ItemRows:
    """Return the events of users as one array."""
    times = [each.times for each in events if each.times is not None]
    return ItemRows.of([each.item_ids for each in events], times or None, [each.columns for each in events])
