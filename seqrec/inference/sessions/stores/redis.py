"""Sessions in a Redis server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from seqrec.errors import InputError, SessionStoreError
from seqrec.inference.secrets import read_secret, without_password

PASSWORD_VARIABLE = "SEQREC_REDIS_PASSWORD"


class RedisStore:
    """Keeps sessions in a Redis server, as one hash; see `StateStore`. Needs `pip install seqrec[redis]`.

    The server's settings decide what survives its crash: with `appendonly yes` and `appendfsync always`, every
    acknowledged write does. Several processes may read and write, but one user's events must all go through one of
    them: a session is read, changed and written back without a lock.

    Args:
        url: Such as `redis://localhost:6379/0`. On a command line, everyone on the machine can read it (`ps`): give a
            password in one of the other ways.
        prefix: Start of the names of the two keys in use; models with different prefixes can share a server.
        timeout_seconds: Longest wait for the server.
        password_file: File with the server's password, which others must not be able to read. None takes the
            environment variable SEQREC_REDIS_PASSWORD; if that is not set, the password is the URL's, or none.

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
        ...     print(str(error)[:31])
        the Redis server cannot be used
    """

    def __init__(
        self, url: str, *, prefix: str = "seqrec", timeout_seconds: float = 5.0, password_file: str | None = None
    ) -> None:
        try:
            import redis
        except ImportError as error:
            raise InputError("RedisStore needs the package redis: pip install 'seqrec[redis]'") from error
        self._error = redis.RedisError
        shown = without_password(url)
        found = read_secret(password_file, "password_file", PASSWORD_VARIABLE)
        if found is not None and shown != url:
            raise InputError(f"both url={shown} and {found[1]} have a password; remove that of the URL")
        self.password_in_url = shown != url
        self._description, self._sessions = f"{prefix}:description", f"{prefix}:sessions"
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
        return found

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `StateStore.get_many`."""
        if not keys:
            return []
        with self._errors():
            return list(self._server.hmget(self._sessions, list(keys)))  # type: ignore[arg-type]

    def put_many(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """See `StateStore.put_many`; one command, which Redis applies whole."""
        if rows:
            with self._errors():
                self._server.hset(self._sessions, mapping=dict(rows))

    def delete(self, key: bytes) -> bool:
        """See `StateStore.delete`."""
        with self._errors():
            return bool(self._server.hdel(self._sessions, key))

    def __len__(self) -> int:
        with self._errors():
            return int(self._server.hlen(self._sessions))

    def close(self) -> None:
        """See `StateStore.close`."""
        self._server.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise SessionStoreError(f"the Redis server cannot be used: {error}") from error
