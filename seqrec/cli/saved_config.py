"""The config that a run keeps in its folder and in its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import SaveConfigCallback

from seqrec.cli.run_config import KEY as RUN_KEY
from seqrec.errors import InputError
from seqrec.files import synchronise


class SavedConfig(SaveConfigCallback):
    """Writes `config.yaml` into the run's folder, flushed to disk like the checkpoints, and into each of these."""

    _text: str | None = None  # content of the file

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the config, and the folder that its relative paths are from."""
        if self._text is None:  # this process wrote no file
            self._text = str(self.parser.dump(self.config, skip_none=False))
        checkpoint[RUN_KEY] = {"config": self._text, "folder": str(Path.cwd())}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file; refuse to replace one that someone else wrote."""
        folder = trainer.log_dir  # a broadcast, so every process asks
        file = None if folder is None else Path(folder) / self.config_filename
        if self.overwrite and file is not None and file.is_file() and not _is_saved_config(file):
            raise InputError(
                f"{file} is not a config that seqrec saved, and would be replaced; choose another folder: "
                "--trainer.default_root_dir, or a logger"
            )
        saved_before = self.already_saved
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero and file is not None and file.is_file():
            if not saved_before:
                self._text = file.read_text(encoding="utf-8")
            synchronise(file)
            synchronise(file.parent)


def _is_saved_config(file: Path) -> bool:
    return file.read_bytes().startswith(b"# lightning.pytorch==")
