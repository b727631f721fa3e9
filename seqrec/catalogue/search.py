"""Search for the items with the best scores: exact, or approximate by FAISS.

B users, C candidates, D width, V = num_items + 1, K top-k.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.catalogue.scorer import Scorer, check_top_k
from seqrec.data.integrity import sha256
from seqrec.errors import InputError
from seqrec.files import move, write_json
from seqrec.types import ROW_STRIDE, Recommendations, SeenItems

Kind = Literal["ivf_pq", "ivf_flat", "hnsw"]

# Floats of vectors that are added to the index, or read, at a time: 2^25 are 128 MiB.
FLOATS = 1 << 25
# Vectors per list that its centre is learned from. FAISS asks for 39 and takes up to 256; the time grows with it.
TRAINED_ON = 64
# Candidates that are at most this share of the catalogue are scored without the index.
SCORED_SHARE = 1 / 64


class ItemSearch(ABC):
    """Finds the items with the best scores. Subclasses keep their constructor arguments as attributes.

    Attributes:
        concurrent: Whether several threads may search at the same time.
    """

    concurrent = False

    def prepare(self, scorer: Scorer) -> None:  # noqa: B027  # optional
        """Prepare for a scorer's item vectors; call it before `top_k`, and again after they change."""

    @abstractmethod
    def top_k(
        self,
        scorer: Scorer,
        states: Tensor,
        k: int,
        user_ids: Tensor,
        *,
        exclude: SeenItems | None = None,
        blocked: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> Recommendations:
        """Return the K best items for each user, or those that the search finds; arguments as of `Scorer.top_k`.

        Returns:
            As `Scorer.top_k`; scores are exact. A user gets fewer than K items only if no more are allowed.

        Raises:
            InputError: if `k` is out of range.
        """

    def counts(self) -> dict[str, int]:
        """Return counts of the search so far, by name, which a summary adds up."""
        return {}


class ExactSearch(ItemSearch):
    """Scores the whole catalogue, in chunks.

    Example:
        >>> from seqrec import ExactSearch, SASRec
        >>> model = SASRec(num_items=20, d_model=8)
        >>> model.search = ExactSearch()  # which is the default
    """

    concurrent = True

    def top_k(
        self,
        scorer: Scorer,
        states: Tensor,
        k: int,
        user_ids: Tensor,
        *,
        exclude: SeenItems | None = None,
        blocked: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> Recommendations:
        """See `Scorer.top_k`."""
        return scorer.top_k(states, k, user_ids, exclude=exclude, blocked=blocked, allowed=allowed)


class FaissSearch(ItemSearch):
    """Finds candidates in an index of the item vectors, and scores them exactly.

    Johnson et al. 2019, Billion-scale Similarity Search with GPUs; hnsw: Malkov & Yashunin 2018.

    It is faster than exact search from some millions of items. The largest inner products are the shortest distances
    once another column makes all vectors equally long (Bachrach et al. 2014, Speeding Up the Xbox Recommender System).
    Each user gets `overfetch` times K candidates, plus the number of its seen items up to 1,000. If fewer than K of
    them are allowed, the user is searched exactly, and counted. Each kind of index skips items that are blocked, or no
    candidates. Candidates that are at most a 64th of the catalogue are all scored, which costs no more than reading the
    default share of the lists.

    Args:
        kind: `ivf_pq`: lists around centres, vectors as short codes, about D / 4 bytes per item. `ivf_flat`: the
            vectors themselves, 4 D bytes. `hnsw`: a graph of them, 4 D + 8 `neighbours` bytes.
        lists: Lists of the ivf kinds; None is four times the square root of the number of items.
        probes: Lists that a search reads per user; None is a 64th of them, at least 8. More find more.
        neighbours: Edges per vertex of hnsw.
        overfetch: Candidates per requested item.
        index_file: File of the index: read if it has the same vectors and settings, otherwise written. None builds
            the index in memory.

    Raises:
        InputError: if a number is below 1, the kind is unknown, or the package faiss is not installed.

    Example:
        >>> from seqrec import FaissSearch, SASRec
        >>> model = SASRec(num_items=20, d_model=8)
        >>> model.search = FaissSearch("ivf_flat", probes=2)
        >>> model.search.prepare(model.scorer())
    """

    def __init__(
        self,
        kind: Kind = "ivf_pq",
        *,
        lists: int | None = None,
        probes: int | None = None,
        neighbours: int = 32,
        overfetch: int = 4,
        index_file: str | None = None,
    ) -> None:
        if kind not in get_args(Kind):
            raise InputError(f"kind={kind!r} must be one of {', '.join(get_args(Kind))}")
        for name, value in {
            "lists": lists,
            "probes": probes,
            "neighbours": neighbours,
            "overfetch": overfetch,
        }.items():
            if value is not None and value < 1:
                raise InputError(f"{name}={value} must be at least 1")
        _faiss()  # fails here rather than after minutes
        self.kind = kind
        self.lists = lists
        self.probes = probes
        self.neighbours = neighbours
        self.overfetch = overfetch
        self.index_file = index_file
        self._index: Any = None
        self._exact_rows = 0

    @torch.no_grad()
    def prepare(self, scorer: Scorer) -> None:
        """Build the index of a scorer's item vectors, or read it.

        Raises:
            InputError: if the scores are not inner products.
        """
        if type(scorer) is not Scorer:
            raise InputError(
                f"FaissSearch finds inner products of vectors, but {type(scorer).__name__} scores otherwise; use "
                "ExactSearch"
            )
        digest = self._digest(scorer)
        path = None if self.index_file is None else Path(self.index_file)
        self._index = None if path is None else _read(path, digest)
        if self._index is None:
            self._index = self._build(scorer)
            if path is not None:
                _write(self._index, path, digest)

    def counts(self) -> dict[str, int]:
        """Return the number of users that were searched exactly, as `exact_rows`."""
        return {"exact_rows": self._exact_rows}

    @torch.no_grad()
    def top_k(
        self,
        scorer: Scorer,
        states: Tensor,
        k: int,
        user_ids: Tensor,
        *,
        exclude: SeenItems | None = None,
        blocked: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> Recommendations:
        """See `ItemSearch.top_k`; needs `prepare`."""
        check_top_k(k, scorer.num_items)
        if self._index is None:
            raise InputError("FaissSearch has no index yet; call prepare(model.scorer()) first")
        states = scorer.cast(states)
        if allowed is not None and len(allowed) <= SCORED_SHARE * scorer.num_items:
            return scorer.top_k(states, k, user_ids, exclude=exclude, blocked=blocked, allowed=allowed)
        seen = 0 if exclude is None else int(exclude.counts.max())
        wanted = min(scorer.num_items, self.overfetch * k + min(seen, 1000))
        candidates = self._candidates(states, wanted, blocked, allowed)
        scores = _scores(scorer, states, candidates)
        forbidden = (candidates == 0) | scores.isnan()
        if exclude is not None:
            forbidden |= _among(candidates, exclude)
        if blocked is not None:
            forbidden |= torch.isin(candidates, blocked)
        if allowed is not None:
            forbidden |= ~torch.isin(candidates, allowed)
        values, columns = scores.masked_fill_(forbidden, -torch.inf).topk(k, dim=1)
        item_ids = candidates.gather(1, columns).masked_fill_(values == -torch.inf, 0)
        short = (item_ids == 0).any(1)
        if short.any():
            rows = short.nonzero().flatten()
            own = None if exclude is None else exclude.of_rows(rows)
            exact = scorer.top_k(states[rows], k, rows, exclude=own, blocked=blocked, allowed=allowed)
            self._exact_rows += len(rows)
            item_ids = item_ids.index_copy(0, rows, exact.item_ids)
            values = values.index_copy(0, rows, exact.scores)
        return Recommendations(item_ids, values, user_ids)

    def _candidates(self, states: Tensor, wanted: int, blocked: Tensor | None, allowed: Tensor | None) -> Tensor:
        """Return (B, C) item ids, 0 if the index finds fewer."""
        faiss = _faiss()
        faiss.omp_set_num_threads(torch.get_num_threads())
        settings: dict[str, Any] = {}
        if blocked is not None:
            # The index numbers items from 0.
            settings["sel"] = faiss.IDSelectorNot(faiss.IDSelectorBatch(blocked.cpu().numpy() - 1))
        if allowed is not None:
            bits = np.zeros(self._index.ntotal, bool)
            bits[allowed.cpu().numpy() - 1] = True
            chosen = faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
            settings["sel"] = faiss.IDSelectorAnd(chosen, settings["sel"]) if settings else chosen
        if self.kind == "hnsw":
            # Vertices that are no candidates are visited too, so others are met more seldom.
            rarity = 1 if allowed is None else math.ceil(self._index.ntotal / len(allowed))
            parameters = faiss.SearchParametersHNSW(efSearch=2 * wanted * rarity, **settings)
        else:
            probes = self.probes or max(8, math.ceil(self._index.nlist / 64))
            parameters = faiss.SearchParametersIVF(nprobe=min(probes, self._index.nlist), **settings)
        queries = _padded(states.float().cpu().numpy(), self._index.d)
        _, found = self._index.search(queries, wanted, params=parameters)
        return torch.from_numpy(found + 1).to(states.device)

    def _build(self, scorer: Scorer) -> Any:
        faiss, num_items = _faiss(), scorer.num_items
        faiss.omp_set_num_threads(torch.get_num_threads())
        width = scorer.part(1, 1).shape[1]
        step = max(1, FLOATS // width)
        firsts = range(1, num_items + 1, step)
        longest = max(float(scorer.part(first, step).square().sum(1).max()) for first in firsts)
        width += 1
        if self.kind == "hnsw":
            index = faiss.IndexHNSWFlat(width, self.neighbours)
        else:
            lists = min(self.lists or round(4 * math.sqrt(num_items)), max(1, num_items // 39))
            codes = math.ceil(width / 4)
            # A code has 4 columns, and learning 8 bits needs 256 vectors.
            pq = f"PQ{codes}" if num_items >= 256 else f"PQ{codes}x4"
            width, coding = (4 * codes, pq) if self.kind == "ivf_pq" else (width, "Flat")
            index = faiss.index_factory(width, f"IVF{lists},{coding}")
            size = min(num_items, max(TRAINED_ON * lists, 1 << 16))
            some = torch.linspace(1, num_items, size, dtype=torch.float64).round().long()
            index.train(_equally_long(scorer.vectors(some), longest, width))
        for first in firsts:
            index.add(_equally_long(scorer.part(first, step), longest, width))
        return index

    def _digest(self, scorer: Scorer) -> str:
        digest = hashlib.sha256(f"{self.kind} {self.lists} {self.neighbours}".encode())
        if self.index_file is not None:
            step = max(1, FLOATS // scorer.part(1, 1).shape[1])
            for first in range(1, scorer.num_items + 1, step):
                vectors = scorer.part(first, min(step, scorer.num_items + 1 - first))
                digest.update(vectors.float().cpu().numpy().tobytes())
        return digest.hexdigest()


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise InputError(
            f"FaissSearch needs the package faiss ({error}): pip install 'seqrec[faiss]', or use ExactSearch"
        ) from error


def _equally_long(vectors: Tensor, longest: float, width: int) -> NDArray[np.float32]:
    """Return (N, width) vectors with a column that makes their squared length `longest`."""
    missing = (longest - vectors.double().square().sum(1, keepdim=True)).clamp_min(0).sqrt()
    return _padded(torch.cat([vectors.float(), missing.float()], 1).cpu().numpy(), width)


def _padded(vectors: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Return vectors padded with zeros to (N, width), which changes no product."""
    if vectors.shape[1] == width:
        return np.ascontiguousarray(vectors)
    return np.pad(vectors, ((0, 0), (0, width - vectors.shape[1])))


@torch.no_grad()
def _scores(scorer: Scorer, states: Tensor, candidates: Tensor) -> Tensor:
    """Return (B, C) exact scores, some rows at a time; those of item 0 mean nothing."""
    rows = max(1, FLOATS // (candidates.shape[1] * states.shape[1]))
    begins = range(0, len(states), rows)
    return torch.cat([scorer.score(states[b : b + rows], candidates[b : b + rows]) for b in begins])


def _among(candidates: Tensor, exclude: SeenItems) -> Tensor:
    """Return (B, C) whether a row excludes the candidate."""
    keys = exclude.rows * ROW_STRIDE + exclude.item_ids
    wanted = torch.arange(len(candidates), device=keys.device).unsqueeze(1) * ROW_STRIDE + candidates
    return torch.isin(wanted, keys)


def _read(path: Path, digest: str) -> Any:
    """Return the index of the file; None if it has other vectors, is damaged or cannot be read."""
    description = path.with_name(path.name + ".json")
    try:
        written = json.loads(description.read_text(encoding="utf-8"))
        if written["digest"] != digest or written["sha256"] != sha256(path):
            return None
        return _faiss().read_index(str(path))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None


def _write(index: Any, path: Path, digest: str) -> None:
    description = path.with_name(path.name + ".json")
    description.unlink(missing_ok=True)
    aside = path.with_name(path.name + ".partial")
    _faiss().write_index(index, str(aside))
    move(aside, path)
    # Written last, so an index is never taken for that of other vectors.
    write_json(description, {"digest": digest, "sha256": sha256(path)})
