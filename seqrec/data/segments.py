"""A store that has grown, read as one history: which file holds which events. U users, E events.

`prepare` writes one segment, with its files in the store's folder. Each `append` adds a folder `segment_0002`, .. with

- for each user with new events, the end of the history from the first event that is new: the new events and, if some
  of them are late, the older ones that now follow them. A history is therefore what is left of the earlier files,
  followed by this end. Merging at each read instead would cost every batch; copying whole histories every append.
- `offsets` (U + 1,), the new start of each user's events in the history as a whole;
- `run_starts` (R + 1,) and `run_places` (R,): the runs of events that lie together in the files. Run r has the events
  [run_starts[r], run_starts[r + 1]), and lies from run_places[r] on in the files of all segments, one after the other;
- vocabularies with more ids, if there are new ones.

No file is ever changed. The manifest, which is replaced last, lists the files of all segments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from seqrec.data.manifest import segment_folders, segments_of

Int64 = NDArray[np.int64]
# Events to find at a time, which bounds the memory of long slices.
FOUND_EVENTS = 1 << 20


class JoinedArray:
    """Values of events that lie in several files, read like one array (E, ..).

    Args:
        parts: The arrays of the segments, most often memory-mapped.
        starts: (R + 1,) start of each run of events, and E.
        places: (R,) place of each run in the parts, one after the other.

    Example:
        >>> import numpy as np
        >>> joined = JoinedArray([np.array([1, 2, 5]), np.array([3])], np.array([0, 2, 3, 4]), np.array([0, 3, 2]))
        >>> np.asarray(joined).tolist(), joined[1:3].tolist(), len(joined)
        ([1, 2, 3, 5], [2, 3], 4)
    """

    def __init__(self, parts: Sequence[NDArray[Any]], starts: Int64, places: Int64) -> None:
        # Each slice of a map itself would make another map object.
        self._parts = [np.asarray(part) for part in parts]
        self._bounds = np.cumsum([0, *map(len, self._parts)])
        self._starts, self._places = np.asarray(starts), np.asarray(places)
        self.dtype = np.result_type(*self._parts)
        self.shape = (int(self._starts[-1]), *self._parts[0].shape[1:])

    def __len__(self) -> int:
        return int(self.shape[0])

    @property
    def runs(self) -> tuple[Int64, Int64, Int64]:
        """Starts and places of the runs, and the place where each part begins and the last one ends."""
        return self._starts, self._places, self._bounds

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        if isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            return self._slice(begin, end) if step == 1 else self._gather(np.arange(begin, end, step))
        places = np.asarray(index)
        if places.dtype == bool:
            places = np.flatnonzero(places)
        found = self._gather(places.reshape(-1))
        return found.reshape((*places.shape, *self.shape[1:]))[()]

    def take(self, places: Int64, axis: int = 0, mode: str = "raise") -> NDArray[Any]:
        """Return the values at places (N, ..); the mode "clip" takes the first or last one for places outside."""
        assert axis == 0
        return self[np.clip(places, 0, len(self) - 1) if mode == "clip" else places]

    def _slice(self, begin: int, end: int) -> NDArray[Any]:
        if end <= begin:
            return np.empty((0, *self.shape[1:]), self.dtype)
        run = int(np.searchsorted(self._starts, begin, side="right")) - 1
        if end <= self._starts[run + 1]:
            first = int(self._places[run]) + begin - int(self._starts[run])
            part = int(np.searchsorted(self._bounds, first, side="right")) - 1
            first -= int(self._bounds[part])
            return self._parts[part][first : first + end - begin].astype(self.dtype, copy=False)
        blocks = range(begin, end, FOUND_EVENTS)
        return np.concatenate([self._gather(np.arange(each, min(each + FOUND_EVENTS, end))) for each in blocks])

    def _gather(self, places: Int64) -> NDArray[Any]:
        places = np.where(places < 0, places + len(self), places)
        if len(places) and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"a place is outside of the {len(self)} events")
        runs = np.searchsorted(self._starts, places, side="right") - 1
        there = places - self._starts[runs] + self._places[runs]
        found = np.empty((len(places), *self.shape[1:]), self.dtype)
        of_part = np.searchsorted(self._bounds, there, side="right") - 1
        for number, part in enumerate(self._parts):
            own = of_part == number
            if own.any():
                found[own] = part[there[own] - self._bounds[number]]
        return found


def plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that is read by slices and places at once: a map as a plain array, and a joined array unchanged.

    `numpy.asarray` would copy the events of all segments.
    """
    return array if isinstance(array, JoinedArray) else np.asarray(array)


def runs_of(array: NDArray[Any]) -> tuple[Int64, Int64, Int64]:
    """Return `JoinedArray.runs`, also of an array in one piece."""
    if isinstance(array, JoinedArray):
        return array.runs
    return np.array([0, len(array)]), np.zeros(1, np.int64), np.array([0, len(array)])


class Layout:
    """Which file of a store holds what.

    Args:
        directory: Folder of the store.
        manifest: Content of its manifest.
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        self._files = manifest["files"]
        self._prefixes = ["", *(f"{folder}/" for folder in segment_folders(segments_of(manifest)))]
        self._directory = directory

    def folder_of(self, stem: str) -> Path:
        """Return the folder with the newest file or vocabulary of a name."""
        files = (f"{stem}.npy", f"{stem}.bytes.npy")
        prefix = next(
            each for each in reversed(self._prefixes) if any(f"{each}{file}" in self._files for file in files)
        )
        return self._directory / prefix

    def newest(self, stem: str) -> NDArray[Any]:
        """Return the newest array of a name, memory-mapped."""
        return _map(self.folder_of(stem) / f"{stem}.npy")

    def events(self, stem: str) -> NDArray[Any]:
        """Return an array with E rows, memory-mapped."""
        parts = [_map(self._directory / f"{prefix}{stem}.npy") for prefix in self._prefixes]
        if len(parts) == 1:
            return parts[0]
        return cast("NDArray[Any]", JoinedArray(parts, self.newest("run_starts"), self.newest("run_places")))


def _map(file: Path) -> NDArray[Any]:
    mapped: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return mapped


def grown_runs(
    starts: Int64, places: Int64, kept: tuple[Int64, Int64], tails: Int64, bounds: Int64
) -> tuple[Int64, Int64]:
    """Return starts and places of the runs after an append.

    Args:
        starts: (R + 1,) starts of the runs before.
        places: (R,) their places.
        kept: For each of T users with new events, in order: where what is left of the history ends, (T,), and where the
            history ended before, (T,), E for new users.
        tails: (T,) events of each user in the new segment, where they lie one after the other.
        bounds: Where each file of events begins before, and the last one ends, which is where the new one begins.
    """
    ends, olds = kept
    cuts = np.unique(np.concatenate([starts[:-1], ends, olds]))
    cuts = cuts[cuts < starts[-1]]
    lengths = np.diff(np.append(cuts, starts[-1]))
    runs = np.searchsorted(starts, cuts, side="right") - 1
    old_places = places[runs] + cuts - starts[runs]
    # A piece is replaced if it lies between the end of what is left and the former end of a history.
    user = np.minimum(np.searchsorted(olds, cuts, side="right"), len(olds) - 1)
    left = ~((cuts >= ends[user]) & (cuts < olds[user]))
    new_places = bounds[-1] + np.cumsum(tails) - tails
    # The end of a history follows the pieces before its former end.
    order = np.lexsort((np.arange(left.sum() + len(tails)), np.append(2 * cuts[left], 2 * olds - 1)))
    lengths, found = np.append(lengths[left], tails)[order], np.append(old_places[left], new_places)[order]
    # No run lies in two files.
    follows = (found[1:] == found[:-1] + lengths[:-1]) & ~np.isin(found[1:], bounds)
    is_first = np.concatenate([[True], ~follows])
    begins = np.cumsum(lengths) - lengths
    return np.append(begins[is_first], lengths.sum()), found[is_first]
