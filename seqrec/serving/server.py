"""A server process: address, token, start and stop. Needs `seqrec[serve]`."""

from __future__ import annotations

import ipaddress
import math
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from seqrec.errors import InputError, MissingInputError
from seqrec.serving.limits import Limits

TOKEN_VARIABLE = "SEQREC_TOKEN"
MIN_TOKEN = 16
MAKE_TOKEN = "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
KEEP_ALIVE_SECONDS = 30


class Server(uvicorn.Server):
    """A uvicorn server that reports when it is ready, and finishes its requests before it stops.

    Args:
        config: Settings of uvicorn.
        ready: Called once requests are accepted.
    """

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then call `ready`."""
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish requests in progress and exit with 0; a second signal ends the process at once."""
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.should_exit = True


def run_server(
    app: FastAPI,
    listener: socket.socket,
    *,
    limits: Limits,
    ready: Callable[[], None],
    access_log: bool = False,
) -> None:
    """Answer requests until a signal arrives.

    Args:
        app: From `create_app`.
        listener: From `bind`.
        limits: Time that requests in progress have when the server stops.
        ready: Called once requests are accepted.
        access_log: Whether to log each request.
    """
    config = uvicorn.Config(
        app,
        log_level="info" if access_log else "warning",
        access_log=access_log,
        lifespan="on",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(limits.stop_seconds),
    )
    Server(config, ready).run(sockets=[listener])


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
    """Raise an `InputError` if other machines can reach an address and there is no token."""
    if token is None and not allow_no_token and not _is_loopback(host):
        raise InputError(
            f"host={host} can be reached by others, who could read and write users' sessions: set {TOKEN_VARIABLE} or "
            "give --token_file, or give --allow_no_token true if something else keeps them out"
        )


def read_token(token_file: str | None) -> str | None:
    """Return the token of a file or of the environment; None if neither is set.

    Raises:
        InputError: if the token is short, or contains anything but printable ASCII characters.
    """
    if token_file is not None:
        if not Path(token_file).is_file():
            raise MissingInputError(f"token_file={token_file} does not exist; {MAKE_TOKEN}")
        token, source = Path(token_file).read_text(encoding="utf-8", errors="replace").strip(), "token_file"
    elif TOKEN_VARIABLE in os.environ:
        token, source = os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return None
    # The error does not show the token, as errors end up in logs.
    if len(token) < MIN_TOKEN or not all("!" <= character <= "~" for character in token):
        raise InputError(
            f"the token in {source} must be {MIN_TOKEN} or more printable ASCII characters without spaces; {MAKE_TOKEN}"
        )
    return token


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
