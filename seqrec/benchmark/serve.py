"""`seqrec benchmark serve`: answers of a server to many clients at once, beside a route that does nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

from seqrec.benchmark.serve_stages import measure_clients, running_server
from seqrec.benchmark.serve_tables import RouteRow, as_json, as_text, rows_of
from seqrec.data.progress import Progress, print_line
from seqrec.errors import InputError
from seqrec.serving import Limits
from seqrec.serving.command import check_packages


def benchmark_serve(
    clients: int = 32,
    *,
    requests: int = 4000,
    seconds: float = 30.0,
    items: int = 10_000,
    d_model: int = 64,
    num_layers: int = 2,
    k: int = 10,
    batch_wait_ms: float = Limits.batch_wait_ms,
    folder: str | None = None,
    seed: int = 0,
    json_file: str | None = None,
) -> None:
    """Time `seqrec serve` under many clients at once, half of whose requests observe and half recommend.

    The server has a process of its own, MambaRec with random weights, and sessions in an SQLite file; clients share
    this process, and keep their connections. A bare FastAPI application, served alike, is the yardstick.

    Args:
        clients: Clients at once.
        requests: Requests of all clients together, to each of the two servers.
        seconds: After so much time no more requests are sent.
        items: Size of the catalogue.
        d_model: Width.
        num_layers: Blocks.
        k: Items asked for.
        batch_wait_ms: See `seqrec serve`.
        folder: Folder on the disk that the sessions are written to; None is the system's for temporary files.
        seed: Seed of users and items.
        json_file: File that the figures are written to, as JSON.

    Raises:
        InputError: an argument is out of range, packages are not installed, or a request failed.
    """
    check_packages()
    settings = {
        "clients": clients,
        "requests": requests,
        "items": items,
        "d_model": d_model,
        "num_layers": num_layers,
        "k": k,
    }
    for name, value in settings.items():
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    if requests < clients:
        raise InputError(f"requests={requests} must be at least one for each of clients={clients}")
    if k > items:
        raise InputError(f"k={k} must be at most items={items}")
    if json_file is not None and not Path(json_file).absolute().parent.is_dir():
        raise InputError(f"json_file={json_file!r} lies in a folder that does not exist; make it first")
    progress = Progress(print_line)
    load = {"clients": clients, "requests": requests, "seconds": seconds, "k": k, "seed": seed}
    rows: list[RouteRow] = []
    with tempfile.TemporaryDirectory(prefix="seqrec-serve-", dir=folder) as place:
        file = str(Path(place) / "sessions.sqlite")
        for kind, drawn in (("bare", None), ("serve", items)):
            progress.note(f"{kind}: {requests:,} requests of {clients} clients ...")
            child = {"kind": kind, "sessions": file, "batch_wait_ms": batch_wait_ms, **settings}
            with running_server(child) as url:
                rows += rows_of(kind, measure_clients(url, items=drawn, **load))  # type: ignore[arg-type]
    print(f"\n{as_text(settings, rows)}")
    if json_file is not None:
        Path(json_file).write_text(as_json(settings, rows) + "\n", encoding="utf-8")
    if errors := max((row.errors for row in rows), default=0):
        raise InputError(f"{errors} requests failed; none should")
