"""A server process: address, token, open files, start and stop. Needs `seqrec[serve]`."""

from __future__ import annotations

import math
import re
import signal
import socket
from collections.abc import Callable
from types import FrameType

try:
    import resource
except ImportError:  # only Unix has it
    resource = None  # type: ignore[assignment]

import uvicorn
from fastapi import FastAPI

from seqrec.errors import InputError, MissingInputError
from seqrec.inference.secrets import read_secret
from seqrec.serving.connections import LimitedProtocol, Listener, limit_log_lines
from seqrec.serving.hosts import is_address, is_loopback
from seqrec.serving.limits import Limits
from seqrec.serving.metrics import Metrics

TOKEN_VARIABLE = "SEQREC_TOKEN"
MIN_TOKEN = 16
MAKE_TOKEN = "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
# Open files besides connections: the log's columns, the sessions, and connections that are being closed.
OTHER_FILES = 128


class Server(uvicorn.Server):
    """A uvicorn server with limits of connections, which finishes its requests before it stops.

    The application's metrics, `app.state.metrics`, count the connections. `ready` is called once requests are accepted.
    """

    def __init__(
        self, app: FastAPI, *, limits: Limits, ready: Callable[[], None] = lambda: None, access_log: bool = False
    ) -> None:
        config = uvicorn.Config(
            app,
            # Not httptools and uvloop, which others may have installed: the limits are those of h11 and asyncio.
            http=LimitedProtocol,
            loop="asyncio",
            h11_max_incomplete_event_size=limits.max_head_bytes,
            log_level="info" if access_log else "warning",
            access_log=access_log,
            lifespan="on",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(limits.stop_seconds),
        )
        super().__init__(config)
        limit_log_lines()
        self._limits = limits
        self._metrics: Metrics = getattr(app.state, "metrics", None) or Metrics()
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then call `ready`."""
        await super().startup([])
        for listening in sockets or []:
            listener = Listener(
                listening, limits=self._limits, metrics=self._metrics, make_protocol=self._make_protocol
            )
            self.servers.append(listener)  # type: ignore[arg-type]
        self._ready()

    def _make_protocol(self, pool: Listener) -> LimitedProtocol:
        return LimitedProtocol(self.config, self.server_state, self.lifespan.state, limits=self._limits, pool=pool)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish requests in progress and exit with 0; a second signal ends the process at once."""
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.should_exit = True


def allow_open_files(max_connections: int) -> None:
    """Raise the process' limit of open files to what so many connections need.

    Raises:
        InputError: if the system does not allow as many.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max_connections + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError) as error:
        most = max(hard - OTHER_FILES, 0)
        remedy = f"or give --max_connections {most}" if most else "as fewer are not enough for any connection"
        raise InputError(
            f"max_connections={max_connections} needs {needed} open files, and the system allows {hard}: raise that "
            f"with `ulimit -Hn {needed}`, {remedy}"
        ) from error


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; port 0 takes a free port.

    Raises:
        InputError: if this machine does not have the address, or it is in use.
    """
    if not 0 <= port < 65536:
        raise InputError(f"port={port} must be between 0, which takes a free one, and 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        raise InputError(f"cannot listen at host={host} port={port}: {error}; give another") from error


def url_of(listener: socket.socket) -> str:
    """Return the URL of the server."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_host(host: str, token: str | None, *, allow_no_token: bool) -> None:
    """Raise an `InputError` if an address is none, or if other machines can reach it and there is no token."""
    if "/" in host or host.count(":") == 1:
        raise InputError(f"host={host} must be an address or a name alone; the port is an option of its own: --port")
    if re.fullmatch(r"[\d.]+", host) and not is_address(host):
        raise InputError(f"host={host} is no address; give four numbers up to 255, or a name")
    if token is None and not allow_no_token and not is_loopback(host):
        raise InputError(
            f"host={host} can be reached by others, who could read and write users' sessions: set {TOKEN_VARIABLE} or "
            "give --token_file, or give --allow_no_token true if something else keeps them out"
        )


def read_token(token_file: str | None) -> str | None:
    """Return the token of a file or of the environment; None if neither is set.

    Raises:
        MissingInputError: if the file does not exist.
        InputError: if other users of the machine can read the file, the token is short, or it contains anything but
            printable ASCII characters.
    """
    try:
        found = read_secret(token_file, "token_file", TOKEN_VARIABLE)
    except MissingInputError as error:
        raise MissingInputError(f"{error}; {MAKE_TOKEN}") from error
    if found is None:
        return None
    token, source = found
    # The error does not show the token, as errors end up in logs.
    if len(token) < MIN_TOKEN or not all("!" <= character <= "~" for character in token):
        raise InputError(
            f"the token in {source} must be {MIN_TOKEN} or more printable ASCII characters without spaces; {MAKE_TOKEN}"
        )
    return token
