"""The folder of a run, with its metrics."""

from __future__ import annotations

import shutil
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from seqrec.runs.finding import RUNS, START_FILE, record_start
from seqrec.runs.summary import FILE_NAME

# Files that a run has before it does anything.
_RECORDS = (START_FILE, "config.yaml", "hparams.yaml", "metrics.csv", FILE_NAME)


class RunFolder(CSVLogger):
    """Logs metrics to `metrics.csv` and TensorBoard, in one folder `<save_dir>/<name>/version_<n>`.

    The folder is created when its number is chosen: runs that start at the same time get folders of their own.

    Args:
        save_dir: Folder of all runs. The command line puts the default into `trainer.default_root_dir`.
        name: Folder within it for runs of one kind; empty for none.
        version: Number of the run, or the name of its folder; None is the next free number.
        tensorboard: Whether TensorBoard's files are written too.

    Example:
        >>> import tempfile
        >>> from seqrec import RunFolder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     versions = [RunFolder(folder).version for _ in range(2)]
        >>> versions
        [0, 1]
    """

    def __init__(
        self,
        save_dir: str = str(RUNS),
        *,
        name: str = "",
        version: int | str | None = None,
        tensorboard: bool = True,
    ) -> None:
        super().__init__(save_dir, name=name, version=version)
        self.tensorboard = tensorboard
        self._boards = 0
        self._made: list[Path] = []

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of `metrics.csv`; the first call creates the folder, and records when the run started."""
        new = self._experiment is None
        self.version  # noqa: B018  # chosen before Lightning makes the folders above
        writer = super().experiment
        if new:
            record_start(Path(self.log_dir), Path(self.save_dir))
        return writer

    def move_into(self, root: Path) -> None:
        """Put the default folder of runs into another folder, before the run has one; a chosen `save_dir` stays."""
        if Path(self.save_dir) == RUNS:
            self._save_dir = str(root / RUNS)

    def discard(self) -> None:
        """Delete the folder of a refused run, if this process made it and it holds only records of the start."""
        folder = Path(self.log_dir)
        found = [file for file in folder.rglob("*") if file.is_file()] if folder in self._made else []
        if found and all(file.name in _RECORDS or file.name.startswith("events.out.") for file in found):
            shutil.rmtree(folder)
            with suppress(OSError):
                for each in self._made[1:]:
                    each.rmdir()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Add a row to both files; TensorBoard replaces signs such as `@` by `_`.

        Args:
            metrics: Values by name.
            step: Optimiser steps so far.
        """
        super().log_metrics(metrics, step)
        if self.tensorboard:
            self._board.log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Write buffered metrics."""
        super().save()
        if self.tensorboard and "_board" in self.__dict__:
            self._board.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write buffered metrics, and close TensorBoard's file; a later metric opens a new one."""
        super().finalize(status)
        if "_board" in self.__dict__:
            self._board.experiment.close()
            del self._board

    @cached_property
    def _board(self) -> TensorBoardLogger:
        # Files are named only by the second, and would overwrite each other.
        self._boards += 1
        suffix = f".{self._boards}"
        return TensorBoardLogger(
            self.save_dir,
            name=self.name,
            version=self.version,
            default_hp_metric=False,
            filename_suffix=suffix,
        )

    def _get_next_version(self) -> int:
        root = Path(self.root_dir)
        above = [each for each in (root, *root.parents) if not each.exists()]
        version: int = super()._get_next_version()
        # The other processes get the first one's folder.
        while rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            folder = root / f"version_{version}"
            self._made = [folder, *above]
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                version += 1
        return version
