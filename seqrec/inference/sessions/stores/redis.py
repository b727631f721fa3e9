"""Sessions in a Redis server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from seqrec.errors import InputError, SessionStoreError
from seqrec.inference.secrets import read_secret, without_password
from seqrec.inference.sessions.stores.state_store import Chunk, StoreSizes, check_limits

PASSWORD_VARIABLE = "SEQREC_REDIS_PASSWORD"
# Redis applies a script whole. KEYS: hash of sessions, sorted set of users by last use, hash of the bytes of each
# user's events, hash of totals. ARGV: start of the names of streams of events, time, limits (0 is none), and work.
SCRIPT = """
local sessions, used, sizes, totals = unpack(KEYS)
local stream, now, idle = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local most_users, most_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local function add(name, number)
  if number ~= 0 then redis.call('HINCRBY', totals, name, number) end
end
local function total(name) return tonumber(redis.call('HGET', totals, name) or 0) end
local function touch(user) redis.call('ZADD', used, now, user) end
local function drop(user)
  if redis.call('ZREM', used, user) == 0 then return 0 end
  add('states', -redis.call('HSTRLEN', sessions, user) - #user)
  add('events', -tonumber(redis.call('HGET', sizes, user) or 0))
  redis.call('HDEL', sessions, user)
  redis.call('HDEL', sizes, user)
  redis.call('DEL', stream .. user)
  return 1
end
local function limit()
  local idle_users = {}
  if idle > 0 then idle_users = redis.call('ZRANGEBYSCORE', used, '-inf', '(' .. (now - idle)) end
  for _, user in ipairs(idle_users) do add('dropped', drop(user)) end
  while (most_users > 0 and redis.call('ZCARD', used) > most_users)
      or (most_bytes > 0 and total('states') + total('events') > most_bytes) do
    local oldest = redis.call('ZRANGE', used, 0, 0)[1]
    if not oldest then break end
    add('dropped', drop(oldest))
  end
end
if redis.call('EXISTS', totals) == 0 then
  for _, user in ipairs(redis.call('HKEYS', sessions)) do
    touch(user)
    add('states', redis.call('HSTRLEN', sessions, user) + #user)
  end
end
"""
# Work: keys.
TOUCH = """
limit()
for i = 6, #ARGV do
  if redis.call('HEXISTS', sessions, ARGV[i]) == 1 then touch(ARGV[i]) end
end
"""
# Work: a key.
DELETE = "return drop(ARGV[6])"
# Work: number of sessions; key and session of each; then key, begin, end, last event to drop, and content of chunks.
PUT = """
local last = 6 + 2 * tonumber(ARGV[6])
for i = 7, last, 2 do
  local old = redis.call('HSTRLEN', sessions, ARGV[i])
  if redis.call('HSET', sessions, ARGV[i], ARGV[i + 1]) == 1 then old = -#ARGV[i] end
  add('states', #ARGV[i + 1] - old)
  touch(ARGV[i])
end
for i = last + 1, #ARGV, 5 do
  local user, content, change = ARGV[i], ARGV[i + 4], #ARGV[i + 4]
  local key = stream .. user
  for _, range in ipairs({{'-', ARGV[i + 3]}, {'(' .. ARGV[i + 1], '+'}}) do
    for _, entry in ipairs(redis.call('XRANGE', key, range[1], range[2])) do
      change = change - #entry[2][2]
      redis.call('XDEL', key, entry[1])
    end
  end
  if redis.call('XLEN', key) == 0 then redis.call('DEL', key) end
  if #content > 0 then redis.call('XADD', key, ARGV[i + 2], 'c', content) end
  add('events', change)
  redis.call('HINCRBY', sizes, user, change)
end
limit()
"""


class RedisStore:
    """Keeps sessions in a Redis server, version 6.2 or newer; see `SessionStore`. Needs `pip install seqrec[redis]`.

    The server's settings decide what survives its crash: with `appendonly yes` and `appendfsync always`, every
    acknowledged write does. Several processes may read and write, but one user's events must all go through one of
    them: a session is read, changed and written back without a lock.

    Args:
        url: Such as `redis://localhost:6379/0`. On a command line, everyone on the machine can read it (`ps`): give a
            password in one of the other ways.
        prefix: Start of the names of the keys in use; models with different prefixes can share a server.
        timeout_seconds: Longest wait for the server.
        password_file: File with the server's password, which others must not be able to read. None takes the
            environment variable SEQREC_REDIS_PASSWORD; if that is not set, the password is the URL's, or none.
        keep_events: Most events that are kept per user, the newest; 0 keeps none. From them, a new model or version
            makes the sessions again.
        max_bytes: Most bytes of all sessions, events and keys; None is any number.
        max_users: Most users; None is any number.
        idle_seconds: Seconds after which a session is dropped that is neither read nor written; None is never.

    Raises:
        MissingInputError: if the password's file does not exist.
        InputError: if the package redis is not installed, `url` is not an address, every user of the machine can read
            the password's file, or the URL has a password too.
        SessionStoreError: if the server cannot be reached.

    Example:
        >>> from seqrec import RedisStore
        >>> from seqrec.errors import SessionStoreError
        >>> try:
        ...     store = RedisStore("redis://127.0.0.1:1/0", timeout_seconds=0.1)
        ... except SessionStoreError as error:
        ...     print(str(error)[:61])
        the Redis server at redis://127.0.0.1:1/0 cannot be used: Err
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "seqrec",
        timeout_seconds: float = 5.0,
        password_file: str | None = None,
        keep_events: int = 10_000,
        max_bytes: int | None = None,
        max_users: int | None = None,
        idle_seconds: float | None = None,
    ) -> None:
        check_limits(max_bytes, max_users, idle_seconds, keep_events)
        self.keep_events = keep_events
        self._limits = (idle_seconds or 0, max_users or 0, max_bytes or 0)
        try:
            import redis
        except ImportError as error:
            raise InputError("RedisStore needs the package redis: pip install 'seqrec[redis]'") from error
        self._error = redis.RedisError
        self._shown = shown = without_password(url)
        found = read_secret(password_file, "password_file", PASSWORD_VARIABLE)
        if found is not None and shown != url:
            raise InputError(f"both url={shown} and {found[1]} have a password; remove that of the URL")
        self.password_in_url = shown != url
        self._description, self._events = f"{prefix}:description", f"{prefix}:events:"
        self._keys = [f"{prefix}:{name}" for name in ("sessions", "used", "event_bytes", "totals")]
        try:
            self._server = redis.Redis.from_url(
                url,
                socket_timeout=timeout_seconds,
                socket_connect_timeout=timeout_seconds,
                password=None if found is None else found[0],
            )
        except ValueError as error:
            # Its text may quote the password.
            reason = str(error) if shown == url else "check the parts after the password"
            raise InputError(f"url={shown!r} is no address of a Redis server: {reason}") from None
        with self._errors():
            self._server.ping()

    def claim(self, description: bytes) -> bytes:
        """See `StateStore.claim`."""
        with self._errors():
            pipeline = self._server.pipeline()
            pipeline.setnx(self._description, description)
            pipeline.get(self._description)
            found: bytes = pipeline.execute()[1]
        self._run("")
        return found

    def redescribe(self, description: bytes) -> None:
        """See `SessionStore.redescribe`."""
        with self._errors():
            self._server.set(self._description, description)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `StateStore.get_many`."""
        if not keys:
            return []
        if any(self._limits):
            self._run(TOUCH, *keys)
        with self._errors():
            return list(self._server.hmget(self._keys[0], list(keys)))  # type: ignore[arg-type]

    def put_many(self, rows: Sequence[tuple[bytes, bytes]], chunks: Sequence[Chunk] = ()) -> None:
        """See `SessionStore.put_many`."""
        events = [(*each[:3], max(0, each.end - self.keep_events), each.content) for each in chunks]
        if rows or events:
            self._run(PUT, len(rows), *(part for row in (*rows, *events) for part in row))

    def events_of(self, keys: Sequence[bytes]) -> list[list[bytes]]:
        """See `SessionStore.events_of`."""
        with self._errors():
            pipeline = self._server.pipeline(transaction=False)
            for key in keys:
                pipeline.xrange(self._events.encode() + key)
            return [[fields[b"c"] for _, fields in found] for found in pipeline.execute()]

    def sizes(self) -> StoreSizes:
        """See `SessionStore.sizes`."""
        with self._errors():
            totals: Any = self._server.hmget(self._keys[3], ["states", "events", "dropped"])
        return StoreSizes(len(self), *(int(total or 0) for total in totals))

    def delete(self, key: bytes) -> bool:
        """See `StateStore.delete`."""
        return bool(self._run(DELETE, key))

    def __len__(self) -> int:
        with self._errors():
            return int(self._server.hlen(self._keys[0]))

    def close(self) -> None:
        """See `StateStore.close`."""
        self._server.close()

    def _run(self, work: str, *arguments: bytes | int) -> Any:
        with self._errors():
            first = [self._events, time.time(), *self._limits]
            return self._server.eval(SCRIPT + work, len(self._keys), *self._keys, *first, *arguments)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            reason = f"{str(error).rstrip('.')}; start it, or give another url"
            raise SessionStoreError(f"the Redis server at {self._shown} cannot be used: {reason}") from error
