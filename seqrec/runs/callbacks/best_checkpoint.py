"""The checkpoint of the best epoch, which a resumed run goes on to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, which knows its files again where their folder was moved or is named otherwise.

    Lightning compares folders as text, and forgets the best score where they differ. Arguments are those of
    `ModelCheckpoint`.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score and files, if the best file lies in this callback's folder."""
        best = self._here(state_dict["best_model_path"])
        if best and Path(best).is_file():
            state_dict = {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": best,
                "kth_best_model_path": self._here(state_dict["kth_best_model_path"]),
                "last_model_path": self._here(state_dict["last_model_path"]),
                "best_k_models": {
                    self._here(path): score for path, score in state_dict["best_k_models"].items()
                },
            }
        super().load_state_dict(state_dict)

    def _here(self, path: str) -> str:
        return str(Path(self.dirpath) / Path(path).name) if path and self.dirpath else path
