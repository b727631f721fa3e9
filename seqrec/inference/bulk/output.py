"""The files of a job of recommendations, written so that it may be killed at any moment and go on."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from seqrec.data.store import synchronise
from seqrec.errors import InputError

if TYPE_CHECKING:
    import polars


class BulkOutput:
    """`recs.parquet`, a folder of parts; beside it `recs_summary.json`, which is there when all parts are.

    Users without recommendations stand in `recs_left_out.parquet`. A part appears whole or not at all: it is written
    in `recs.parquet.work` and renamed, and a job that goes on makes those that are missing. Several processes may
    write parts of one job at the same time.

    Args:
        folder: The folder of parts.
        job: All that the recommendations depend on, as plain values.

    Raises:
        InputError: the folder holds those of another job, or something else.
    """

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        self.folder = folder
        self.job = json.loads(json.dumps(job))  # as it is read back
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
                f"output={str(folder)!r} exists and is no job of seqrec recommend; choose another"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(exist_ok=True)
        written = self._aside("job.json")
        written.write_text(json.dumps(self.job, indent=2), encoding="utf-8")
        try:
            # Of several processes one makes the file, whole at once, and the others compare.
            os.link(written, job_file)
        except FileExistsError:
            self._check(_read(job_file))
        finally:
            written.unlink()

    @property
    def summary(self) -> dict[str, Any] | None:
        """What is said of the whole; None while parts are missing."""
        return _read(self.summary_file) if self.summary_file.is_file() else None

    def has(self, part: int) -> bool:
        """Whether a part is there."""
        return self._part(part).is_file()

    def write(
        self, part: int, frame: polars.DataFrame, left_out: polars.Series, counts: dict[str, int]
    ) -> None:
        """Write a part.

        Args:
            part: Its number.
            frame: Recommendations.
            left_out: Users of the part who have none.
            counts: What the summary adds up.
        """
        import polars

        if len(left_out):
            polars.DataFrame({"user_id": left_out}).write_parquet(self._left_out(part))
        self._counts(part).write_text(json.dumps(counts | {"rows": len(frame)}), encoding="utf-8")
        written = self._aside(f"part-{part:06d}.parquet")
        frame.write_parquet(written)
        synchronise(written)
        # From here on the part is done, so the files above come first.
        written.replace(self._part(part))

    def note(self, more: dict[str, Any]) -> None:
        """Keep what the summary says beside the counts, whichever process writes that; call it before `write`."""
        written = self._aside("notes.json")
        written.write_text(json.dumps(more), encoding="utf-8")
        written.replace(self.work / "notes.json")

    def finish(self, num_parts: int) -> dict[str, Any] | None:
        """Write the summary if all parts are there.

        Args:
            num_parts: Parts of the job.

        Returns:
            The summary; None where other processes have parts to write.
        """
        import polars

        with FileLock(self.folder.with_name(self.folder.name + ".lock")):
            if self.summary is not None or not all(self.has(part) for part in range(num_parts)):
                # Another process was last, or is not yet.
                return self.summary
            counts: Counter[str] = Counter()
            for part in range(num_parts):
                counts.update(_read(self._counts(part)))
            left_out = [file for part in range(num_parts) if (file := self._left_out(part)).is_file()]
            if left_out:
                aside = self._aside("left_out.parquet")
                polars.scan_parquet(left_out).sink_parquet(aside)
                aside.replace(self.left_out_file)
            summary = {**counts, "parts": num_parts, **_read(self.work / "notes.json"), "job": self.job}
            aside = self._aside("summary.json")
            aside.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            synchronise(self.folder)
            synchronise(aside)
            aside.replace(self.summary_file)
            synchronise(self.folder.parent)
            shutil.rmtree(self.work, ignore_errors=True)
        return summary

    def _check(self, found: Any) -> None:
        if not isinstance(found, dict):
            raise InputError(f"{self.summary_file} is no summary of seqrec recommend; choose another output")
        for name in sorted({*self.job, *found}):
            was, now = found.get(name), self.job.get(name)
            if was != now:
                raise InputError(
                    f"output={str(self.folder)!r} holds recommendations with {name}={was!r}, now it is {now!r}; give "
                    "the arguments of before to go on with them, or another output"
                )

    def _part(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.parquet"

    def _counts(self, part: int) -> Path:
        return self.work / f"part-{part:06d}.json"

    def _left_out(self, part: int) -> Path:
        return self.work / f"part-{part:06d}-left-out.parquet"

    def _aside(self, name: str) -> Path:
        # Two processes that were given the same part by mistake write the same, each to a file of its own.
        return self.work / f"{os.getpid()}-{name}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); remove it and the parts, and start again"
        ) from error
    return found if isinstance(found, dict) else {}
