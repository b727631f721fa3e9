"""`seqrec serve`: recommendations over HTTP from a checkpoint."""

from __future__ import annotations

import gc
import importlib.util
import logging
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from seqrec.catalogue.candidates import Candidates
from seqrec.catalogue.item_columns import ItemColumns
from seqrec.catalogue.recommend import item_ids_of
from seqrec.data.store import EventStore
from seqrec.errors import InputError, check_at_least
from seqrec.inference.loading import load_with_store, torch_device
from seqrec.inference.sessions import (
    InMemoryStore,
    RedisStore,
    SessionRecommender,
    SQLiteStore,
    StateStore,
    StreamedState,
    log_histories,
)
from seqrec.inference.sessions.stores.redis import PASSWORD_VARIABLE
from seqrec.models import Recommender
from seqrec.runs.finding import find_checkpoint
from seqrec.serving.limits import Limits

if TYPE_CHECKING:
    from seqrec.serving.served import Loaded

_LOG = logging.getLogger(__name__)
PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
# Events per user that are kept in memory for the page.
DEMO_EVENTS = 10_000


def serve(
    ckpt: str,
    *,
    store: str | None = None,
    sessions: InMemoryStore | SQLiteStore | RedisStore | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str | None = None,
    allow_no_token: bool = False,
    allowed_hosts: str | None = None,
    threads: int = 1,
    device: str = "cpu",
    cuda_graphs: bool = False,
    access_log: bool = False,
    log: str | None = None,
    candidates: dict[str, str] | None = None,
    where_columns: str | None = None,
    items: str | None = None,
    items_key: str = "item_id",
    demo: bool = False,
    limits: Limits | None = None,
) -> None:
    """Serve recommendations and take in events over HTTP, until a signal stops the process.

    POST /observe, /recommend and /similar, DELETE /users/USER, GET /live, /ready, /health, /metrics and /openapi.json;
    with --demo, a page at /. POST /reload or SIGHUP loads `ckpt` again while requests come in; sessions continue if
    their store keeps events.

    Args:
        ckpt: A checkpoint that `seqrec fit` wrote; a folder of runs is the run that started last, also at a reload.
        store: Folder of the event store that the model was trained on; None is the folder that it had then.
        sessions: Store of users' sessions: InMemoryStore, SQLiteStore or RedisStore; None keeps them in memory until
            the process ends, and for the page of --demo their events too.
        host: Address to listen at; addresses that other machines can reach need a token.
        port: Port to listen at; 0 takes a free one and prints it.
        token_file: File with the token that clients must send as `Authorization: Bearer TOKEN`. None takes the
            environment variable SEQREC_TOKEN; if that is not set, clients need no token.
        allow_no_token: Whether other machines may connect without a token.
        allowed_hosts: Names under which clients reach the server, separated by commas, besides localhost, IP addresses
            and `host`. Requests that name others are refused, which keeps out web pages that point a name of theirs
            here. '*' allows all.
        threads: Threads of a model call; small batches are fastest with one, catalogues of millions with more.
        device: Where the model computes: cpu, cuda, or auto: cuda if there is a GPU. Sessions stay in the CPU's memory.
        cuda_graphs: Whether events of models that stream are computed by CUDA graphs, for a batch of 1, 2, 4, .. up to
            256 users, recorded at the start. Needs a CUDA device.
        access_log: Whether to log each request.
        log: Folder of an event store with histories that start its users' sessions; None starts all without events.
        candidates: Conditions on items by name, such as --candidates.jazz "genres has 'jazz' and year > 1990". A
            request with that name as its `candidates` gets only items that meet the condition.
        where_columns: Columns of items, separated by commas, that conditions in requests (`where`) may read; '*' allows
            all. Clients can find out their values. None refuses such conditions.
        items: File of a table of items with these columns: Parquet, CSV, TSV or JSON lines. None reads the columns of
            items in the event store.
        items_key: Name of the table's column of item ids.
        demo: Whether / is a page on which one looks up users, sees their newest events, recommendations and
            explanations, and adds events. Titles of items are those of the event store, or of `items`.
        limits: Limits of requests.

    Raises:
        InputError: if an argument is out of range, or packages are not installed.
        MissingInputError: if the checkpoint or the event store does not exist.
        SessionStoreError: if the sessions belong to another model and have no events, or cannot be used.
    """
    check_packages()
    from seqrec.serving.app import create_app
    from seqrec.serving.hosts import host_names
    from seqrec.serving.server import Server, allow_open_files, bind, check_host, read_token, url_of

    check_at_least(1, threads=threads)
    on = torch_device(device)
    _check_graphs(cuda_graphs, on)
    token, hosts = read_token(token_file), [host, *host_names(allowed_hosts or "")]
    check_host(host, token, allow_no_token=allow_no_token)
    limits = limits or Limits()
    allow_open_files(limits.max_connections)
    torch.set_num_threads(threads)
    # Before the model is loaded, to report a port in use at once.
    with bind(host, port) as listener:
        kept = InMemoryStore(keep_events=DEMO_EVENTS if demo else 0) if sessions is None else sessions
        tables = items, items_key, candidates or {}, where_columns, demo
        load = partial(_load, ckpt, store, kept, log, on, cuda_graphs, *tables)
        # Modules stay; searching them for garbage would take half a second. Models are replaced.
        gc.collect()
        gc.freeze()
        with closing(kept):
            warn_of_password(kept)
            given: dict[str, Any] = {"limits": limits, "token": token, "allowed_hosts": hosts, "demo": demo}
            app = create_app(**load(None)._asdict(), load=load, **given)
            ready = _announcement(app.state.serving.now.recommender, kept, url_of(listener), demo=demo)
            Server(app, limits=limits, ready=ready, access_log=access_log).run(sockets=[listener])


def _check_graphs(cuda_graphs: bool, device: str) -> None:
    if cuda_graphs and device == "cpu":
        raise InputError("cuda_graphs=True needs a CUDA device; give --device cuda, or leave cuda_graphs out")


def _load(
    ckpt: str,
    store: str | None,
    kept: StateStore,
    log: str | None,
    device: str,
    cuda_graphs: bool,
    items: str | None,
    items_key: str,
    conditions: dict[str, str],
    where_columns: str | None,
    demo: bool,
    before: Recommender | None,
) -> Loaded:
    """Return the model of the checkpoint, which takes over from another one if there is one."""
    from seqrec.serving.served import Loaded, check_successor

    # The newest run of a folder may be another one by now.
    checkpoint = find_checkpoint(ckpt)
    model, trained_on = load_with_store(checkpoint, store=store, device=device)
    if before is not None:
        check_successor(before, model, kept)
    table = _item_columns(model, trained_on, items, items_key, bool(conditions) or where_columns is not None, demo)
    named, columns = _choices(table, conditions, where_columns)
    history_of = None if log is None else log_histories(EventStore.open(log))
    memory = StreamedState(model, cuda_graphs=True) if cuda_graphs else None
    recommender = SessionRecommender(model, kept, memory=memory, history_of=history_of)
    return Loaded(recommender, named, columns, table, checkpoint)


def _item_columns(
    model: Recommender, store: EventStore, items: str | None, key: str, conditions: bool, demo: bool
) -> ItemColumns | None:
    """Return the columns of items that conditions or the page read; None if nothing reads them, or items have none."""
    if items is not None and not (conditions or demo):
        raise InputError(f"items={items!r} has no effect without --candidates.NAME, --where_columns or --demo")
    # Without columns, the page has no titles; conditions need some.
    if items is None and not (conditions or (demo and store.item_columns)):
        return None
    return ItemColumns.read(store if items is None else items, item_ids_of(model), key=key)


def _choices(
    columns: ItemColumns | None, conditions: dict[str, str], where_columns: str | None
) -> tuple[dict[str, Candidates], ItemColumns | None]:
    """Return the candidates that requests may name, and the columns that their conditions may read."""
    if columns is None:
        return {}, None
    named = {
        name: Candidates.where(condition, columns, argument=f"candidates.{name}")
        for name, condition in conditions.items()
    }
    if where_columns is None:
        return named, None
    names = list(columns) if where_columns == "*" else [name.strip() for name in where_columns.split(",")]
    return named, columns.only(names, "where_columns")


def _announcement(recommender: SessionRecommender, store: StateStore, url: str, *, demo: bool) -> Callable[[], None]:
    """Return a function that prints what is served, which does not keep the model."""
    page = ", with a page for browsers" if demo else ""
    line = f"serving {recommender.model.title} at {url} ({kind_of(recommender, store)}){page}"
    return partial(print, line, flush=True)


def kind_of(recommender: SessionRecommender, store: StateStore) -> str:
    """Return how users' histories are kept, in some words."""
    cost = "streaming" if recommender.streams else "re-encoding histories"
    ends = ", which end with this process" if isinstance(store, InMemoryStore) else ""
    return f"{cost}, sessions in {type(store).__name__}{ends}"


def warn_of_password(store: StateStore) -> None:
    """Log a warning if the address of a store contains a password."""
    if isinstance(store, RedisStore) and store.password_in_url:
        _LOG.warning(
            "everyone on this machine can read the password in --sessions.url (ps); set %s, or give "
            "--sessions.password_file",
            PASSWORD_VARIABLE,
        )


def check_packages() -> None:
    """Raise an `InputError` if a package of the server is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"seqrec serve needs {', '.join(name.replace('_', '-') for name in missing)}, which is not installed: "
            "pip install 'seqrec[serve]'"
        )
