"""Files of a bulk job, which may be killed at any moment and resumed."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import polars

from seqrec.data.user_files import refuse_special
from seqrec.errors import InputError, first_difference
from seqrec.files import create, locked, move, synchronise, write_json, write_parquet

# Name of a part's numbers in its metadata.
COUNTS = "seqrec"


class BulkOutput:
    """A folder of parts, `recs.parquet`, and next to it `recs_summary.json`, written once all parts exist.

    `recs_left_out.parquet` lists users without recommendations. A part appears whole or not at all, also after a loss
    of power: it is written in `recs.parquet.work`, flushed and then renamed. A resumed job makes the parts that are
    missing or cannot be read. Several processes may write parts of one job at the same time.

    Args:
        folder: The folder of parts.
        job: All that the recommendations depend on, as plain values.

    Raises:
        InputError: if the folder contains another job's parts, or something else.
    """

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        refuse_special(folder, f"output={str(folder)!r}", may_be_folder=True)
        self.folder = folder
        self.job = json.loads(json.dumps(job))  # as JSON reads it back
        self.work = folder.with_name(folder.name + ".work")
        self.summary_file = folder.with_name(folder.stem + "_summary.json")
        self.left_out_file = folder.with_name(folder.stem + "_left_out.parquet")
        if self.summary_file.is_file():
            self._check(_read(self.summary_file).get("job"))
            shutil.rmtree(self.work, ignore_errors=True)
            return
        job_file = self.work / "job.json"
        if not job_file.is_file() and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"output={str(folder)!r} exists and is no output of seqrec recommend; choose another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(exist_ok=True)
        synchronise(folder.parent)
        try:
            # One of several processes creates the file, whole at once, and the others compare.
            create(job_file, json.dumps(self.job, indent=2).encode())
        except FileExistsError:
            self._check(_read(job_file))

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary; None while parts are missing."""
        return _read(self.summary_file) if self.summary_file.is_file() else None

    def has(self, part: int) -> bool:
        """Return whether a part exists and can be read; one that cannot is made again."""
        return self._counts(part) is not None

    def write(self, part: int, frame: polars.DataFrame, left_out: polars.Series, counts: dict[str, int]) -> None:
        """Write a part: recommendations, users without any, and numbers that the summary adds up."""
        if len(left_out):
            users = self._aside(f"part-{part:06d}-left-out.parquet")
            write_parquet(polars.DataFrame({"user_id": left_out}), users)
            move(users, self._left_out(part))
        written = self._aside(f"part-{part:06d}.parquet")
        write_parquet(frame, written, metadata={COUNTS: json.dumps(counts | {"rows": len(frame)})})
        # The rename completes the part, so the file above comes first.
        move(written, self._part(part))

    def release(self) -> None:
        """Remove what was made for the job, so that another may take its place, unless there is a part already."""
        if not any(self.folder.iterdir()):
            shutil.rmtree(self.work, ignore_errors=True)
            self.folder.rmdir()

    def note(self, more: dict[str, Any]) -> None:
        """Keep further entries of the summary, among them the number of `parts`; call it before `write`."""
        write_json(self.work / "notes.json", more)

    def finish(self) -> dict[str, Any] | None:
        """Write the summary if all parts exist; returns None if other processes still have parts to write."""
        with locked(self.folder.with_name(self.folder.name + ".lock")):
            notes_file = self.work / "notes.json"
            if self.summary is not None or not notes_file.is_file():
                return self.summary
            notes = _read(notes_file)
            num_parts = int(notes["parts"])
            counts: Counter[str] = Counter()
            for part in range(num_parts):
                found = self._counts(part)
                if found is None:
                    return None
                counts.update(found)
            left_out = [file for part in range(num_parts) if (file := self._left_out(part)).is_file()]
            if left_out:
                aside = self._aside("left_out.parquet")
                write_parquet(polars.scan_parquet(left_out), aside)
                move(aside, self.left_out_file)
            summary = {**counts, **notes, "job": _read(self.work / "job.json")}
            write_json(self.summary_file, summary)
            shutil.rmtree(self.work, ignore_errors=True)
        return summary

    def _check(self, found: Any) -> None:
        if not isinstance(found, dict):
            raise InputError(f"{self.summary_file} is no summary of seqrec recommend; choose another output")
        for name in sorted({*self.job, *found}):
            was, now = found.get(name), self.job.get(name)
            if was != now:
                raise InputError(
                    f"output={str(self.folder)!r} holds recommendations with {first_difference(name, was, now)}; give "
                    "the earlier arguments to resume, or another output"
                )

    def _part(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.parquet"

    def _counts(self, part: int) -> dict[str, int] | None:
        """Return the numbers in a part's own metadata; None if there is no part, or it cannot be read."""
        try:
            found = json.loads(polars.read_parquet_metadata(self._part(part))[COUNTS])
        except (OSError, ValueError, KeyError, polars.exceptions.PolarsError):
            return None
        return found if isinstance(found, dict) else None

    def _left_out(self, part: int) -> Path:
        return self.work / f"part-{part:06d}-left-out.parquet"

    def _aside(self, name: str) -> Path:
        # If two processes get the same part by mistake, each writes the same to its own file.
        return self.work / f"{os.getpid()}-{name}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it and the parts, and start again") from error
    return found if isinstance(found, dict) else {}
