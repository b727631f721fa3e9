"""The candidates of requests: those that the server has under a name, a list of ids, or the items of a condition."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from seqrec.catalogue.candidates import Candidates
from seqrec.catalogue.item_columns import ItemColumns
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError
from seqrec.registry import did_you_mean

# Conditions whose candidates are kept, and the most bytes of their ids.
KEPT_CONDITIONS, KEPT_BYTES = 64, 1 << 26


class Choice(Protocol):
    """The fields of a request that choose candidates; None chooses all items."""

    candidates: Any
    where: str | None


class Choices:
    """Makes the candidates of requests, one request at a time in a thread of its own: a long list or a condition holds
    up neither other requests nor the model. The candidates of the last conditions are kept.

    Args:
        vocabulary: The log's item ids.
        named: Candidates that a request may name.
        columns: Columns of items that conditions of requests may read; None refuses conditions.
    """

    def __init__(self, vocabulary: Vocabulary, named: Mapping[str, Candidates], columns: ItemColumns | None) -> None:
        for name, candidates in named.items():
            candidates.check_catalogue(len(vocabulary), vocabulary, f"candidates.{name}")
        self._vocabulary = vocabulary
        self._named = dict(named)
        self._columns = columns
        self._kept: OrderedDict[str, Candidates] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="candidates")

    async def of(self, choice: Choice) -> Candidates | None:
        """Return the candidates of a request, those of both fields if it has both.

        Raises:
            InputError: if a name, an id or a column is unknown, a condition is none, or no item is left.
        """
        given, where = choice.candidates, choice.where
        if isinstance(given, str) and given not in self._named:
            known = f"it knows {', '.join(self._named)}" if self._named else "it knows none"
            raise InputError(
                f"candidates={given!r} is no name that this server was started with; {known}"
                f"{did_you_mean(given, self._named)}"
            )
        if where is not None and self._columns is None:
            raise InputError("where: this server evaluates no conditions; its option --where_columns allows them")
        if given is None and where is None:
            return None
        if isinstance(given, str) and where is None:
            return self._named[given]
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._made, given, where)

    def close(self) -> None:
        """Stop the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _made(self, given: Any, where: str | None) -> Candidates:
        found = None
        if given is not None:
            is_name = isinstance(given, str)
            found = (
                self._named[given] if is_name else Candidates.of_items(given, self._vocabulary, argument="candidates")
            )
        if where is not None:
            meeting = self._where(where)
            found = meeting if found is None else found & meeting
        assert found is not None
        return found

    def _where(self, condition: str) -> Candidates:
        assert self._columns is not None
        found = self._kept.pop(condition, None) or Candidates.where(condition, self._columns, argument="where")
        self._kept[condition] = found
        while (
            len(self._kept) > KEPT_CONDITIONS or sum(each.item_ids.nbytes for each in self._kept.values()) > KEPT_BYTES
        ):
            self._kept.popitem(last=False)
        return found
