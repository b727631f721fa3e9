"""Choosing the best validation: Lightning's checkpoint and early-stopping callbacks, made resumable."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import callbacks
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from seqrec.errors import InputError, check_at_least
from seqrec.registry import did_you_mean
from seqrec.runs.callbacks.validation_steps import ValidationSteps

# Metrics of which more is better, and what is logged of the training.
_RANKING = re.compile(r"(?:(?:val|test)_)?(?:HR|NDCG|MRR|Recall|Precision)@\d+")
_LOSSES = ("train_loss_step", "train_loss_epoch")


def mode_of(monitor: str | None, mode: str = "auto") -> str:
    """Return whether the best value of a metric, None if none is compared, is the largest ("max") or the smallest
    ("min").

    The mode "auto" is "min" for losses and "max" for ranking metrics.

    Raises:
        InputError: if the mode contradicts the metric, or the metric is unknown and the mode is "auto".

    Example:
        >>> mode_of("val_NDCG@10"), mode_of("train_loss_epoch")
        ('max', 'min')
    """
    if mode not in ("auto", "min", "max"):
        raise InputError(f"mode={mode!r} must be auto, min or max")
    if monitor is None:
        return "min" if mode == "auto" else mode
    known = "max" if _RANKING.fullmatch(monitor) else "min" if re.search(r"(^|_)loss(_|$)", monitor) else None
    if mode == "auto" and known is None:
        names = [*_LOSSES, *(f"val_{name}@{k}" for name in ("HR", "NDCG", "Recall", "Precision") for k in (5, 10, 20))]
        raise InputError(
            f"monitor={monitor!r} is no metric that seqrec knows{did_you_mean(monitor, names)}; give mode, min or max, "
            "if your model logs it"
        )
    if known is not None and mode not in ("auto", known):
        better = "larger" if known == "max" else "smaller"
        raise InputError(f"mode={mode!r} contradicts monitor={monitor!r}: a {better} value is better; leave mode out")
    return known if known is not None and mode == "auto" else mode


def check_monitor(monitor: str | None, trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Refuse, before the first step, a metric that a model of seqrec does not log.

    Raises:
        InputError: if it is misspelt, or of a validation that is switched off, or of targets that are trained on.
    """
    split = getattr(getattr(trainer, "datamodule", None), "split", None)
    if monitor is not None and monitor.startswith("val_") and getattr(split, "train_on_validation", False):
        raise InputError(
            f"monitor={monitor!r} would choose by targets that are trained on (data.split.train_on_validation): test "
            "the last epoch with --checkpoint.monitor null --early_stopping.monitor train_loss_epoch, and find the "
            "number of epochs in a run without train_on_validation"
        )
    metrics = getattr(module, "metrics", None)
    if monitor is None or metrics is None or not type(module).__module__.startswith("seqrec."):
        return
    validation = [f"val_{name}" for name in metrics["val"].keys(keep_base=True)]
    known = [*_LOSSES, *validation, "gradient_norm", "events/s", "tokens/s"]
    # Metrics of several targets, and of callbacks of others.
    others = any(not type(each).__module__.startswith(("seqrec.", "lightning.")) for each in trainer.callbacks)  # type: ignore[attr-defined]
    several = re.fullmatch(r"val_(Recall|Precision)@(5|10|20)", monitor) is not None
    heads = getattr(module, "heads", None)
    known += [] if heads is None else heads.loss_names
    if monitor not in known and not others and not several:
        shown = ", ".join([*validation, *_LOSSES])
        raise InputError(f"monitor={monitor!r} is not logged; known: {shown}{did_you_mean(monitor, known)}")


def _log_other_monitor(callback: pl.Callback, monitor: str | None, trainer: pl.Trainer, states: Iterable[str]) -> None:
    """Log that a resumed run has another metric than its checkpoint, which has the states of callbacks by key."""
    kind = type(callback).__qualname__
    theirs = [key for key in states if key.partition("{")[0] == kind]
    if trainer.state.fn == TrainerFn.FITTING and theirs and callback.state_key not in theirs:
        before = re.search(r"'monitor': '?([^',}]+)", theirs[0])
        rank_zero_info(
            f"{kind}: resumed with monitor {monitor} instead of {before[1] if before else 'another'}; the best value "
            "is searched from here on"
        )


class BestCheckpoint(callbacks.ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, which finds its files again after their folder was moved or renamed.

    Lightning compares folders as text, and forgets the best score if they differ.

    Args:
        dirpath: As of `ModelCheckpoint`, as are the others.
        filename: Likewise.
        monitor: Likewise.
        mode: "min", "max", or "auto": what is better for the metric; see `mode_of`.
        **others: Further arguments of `ModelCheckpoint`.

    Raises:
        InputError: if `mode_of` or `check_monitor` refuses.

    Example:
        >>> from seqrec import BestCheckpoint
        >>> BestCheckpoint(monitor="val_NDCG@10").mode
        'max'
    """

    def __init__(
        self,
        dirpath: str | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        mode: str = "auto",
        **others: Any,
    ) -> None:
        if (monitor or "").startswith("train_") and others.get("save_on_train_epoch_end") is None:
            # Known at the end of epochs, whenever validations are.
            others["save_on_train_epoch_end"] = True
        super().__init__(dirpath, filename, monitor=monitor, mode=mode_of(monitor, mode), **others)
        self._fitting = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the metric before a fit."""
        self._fitting = stage == "fit"
        if self._fitting:
            check_monitor(self.monitor, trainer, pl_module)
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Log if the metric is another one."""
        _log_other_monitor(self, self.monitor, trainer, checkpoint.get("callbacks", {}))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and files if the best file is in this callback's folder.

        Only names of files are taken from the state, because this callback deletes files. Commands other than `fit`
        save no checkpoint, and restore nothing.
        """
        if not self._fitting:
            return
        best = self._here(state_dict["best_model_path"])
        if not (best and Path(best).is_file()):
            return
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": best,
                "kth_best_model_path": self._here(state_dict["kth_best_model_path"]),
                "last_model_path": self._here(state_dict["last_model_path"]),
                "best_k_models": {self._here(path): score for path, score in state_dict["best_k_models"].items()},
            }
        )

    def _here(self, path: str) -> str:
        """Return the checkpoint of that name in this callback's folder; empty if there is none."""
        name = Path(path).name
        return str(Path(self.dirpath) / name) if name.endswith(self.FILE_EXTENSION) and self.dirpath else ""


class ResumableEarlyStopping(callbacks.EarlyStopping):
    """Lightning's `EarlyStopping` with a patience in updates; a stopped run that is resumed trains no further.

    Lightning's checkpoints contain the number of checks without improvement, but not the decision to stop. A resumed
    run uses the patience that it is given, not that of the checkpoint.

    Args:
        monitor: As of `EarlyStopping`, as are the others.
        min_delta: Likewise.
        patience: Checks without improvement after which the run stops: 0 and 1 stop at the first.
        mode: "min", "max", or "auto": what is better for the metric; see `mode_of`.
        patience_steps: Updates since the best check after which the first check without improvement stops the run,
            instead of `patience`. None counts checks.
        **others: Further arguments of `EarlyStopping`.

    Attributes:
        best_step: Update of the best check; 0 before the first.

    Raises:
        InputError: if `mode_of` or `check_monitor` refuses, `patience` is negative, or `patience_steps` is below 1 or
            below the updates between two validations.

    Example:
        >>> from seqrec import ResumableEarlyStopping
        >>> ResumableEarlyStopping(monitor="val_NDCG@10", patience=5).mode
        'max'
    """

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        mode: str = "auto",
        patience_steps: int | None = None,
        **others: Any,
    ) -> None:
        check_at_least(0, patience=patience)
        if patience_steps is not None:
            check_at_least(1, patience_steps=patience_steps)
        if monitor.startswith("train_") and others.get("check_on_train_epoch_end") is None:
            others["check_on_train_epoch_end"] = True
        super().__init__(monitor, min_delta=min_delta, patience=patience, mode=mode_of(monitor, mode), **others)
        self.patience_steps = patience_steps
        self.best_step = self._checked_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the metric and the patience before a fit."""
        if stage == "fit":
            check_monitor(self.monitor, trainer, pl_module)
            every: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
            steps = max((c.every_n_steps or 0 for c in every if isinstance(c, ValidationSteps)), default=0)
            if self.patience_steps is not None and self.patience_steps < steps:
                raise InputError(
                    f"early_stopping.patience_steps={self.patience_steps} must be at least "
                    f"validation.every_n_steps={steps}, the updates between two validations"
                )
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Find the state in a checkpoint of seqrec 0.1, where this class was called EarlyStopping.

        Log if the metric is another one.
        """
        states = checkpoint.get("callbacks", {})
        old = self.state_key.replace(type(self).__qualname__, "EarlyStopping", 1)
        if self.state_key not in states and old in states:
            states[self.state_key] = states[old]
        _log_other_monitor(self, self.monitor, trainer, states)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `EarlyStopping`, and the updates of the best and of the last check."""
        return {**super().state_dict(), "best_step": self.best_step, "checked_step": self._checked_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count of checks without improvement, and keep the patience that was asked for."""
        super().load_state_dict({**state_dict, "patience": self.patience})
        # Checkpoints of earlier versions have no updates: patience in updates starts anew.
        self.best_step, self._checked_step = (state_dict.get(name, 0) for name in ("best_step", "checked_step"))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once if the checkpoint's run had lost patience."""
        if self.wait_count and self._is_lost(self.wait_count, self._checked_step):
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the metric if it is checked at validations."""
        with self._counting_steps(trainer.global_step):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the metric, unless the run has no validation, or ends by its number of steps before the first."""
        ends = 0 < trainer.max_steps <= trainer.global_step or not trainer.limit_val_batches
        if not (ends and self.monitor not in trainer.callback_metrics):
            with self._counting_steps(trainer.global_step):
                super().on_train_epoch_end(trainer, pl_module)

    def _is_lost(self, wait_count: int, step: int) -> bool:
        """Return whether a check without improvement ends the run: the check of this number, at this update."""
        if self.patience_steps is None:
            return wait_count >= self.patience
        return step - self.best_step >= self.patience_steps

    @contextmanager
    def _counting_steps(self, step: int) -> Iterator[None]:
        """Let a check that is made in this context decide by updates; it may be made or not."""
        given, best, waited = self.patience, self.best_score, self.wait_count
        if self.patience_steps is not None:
            # Lightning compares the number of checks.
            self.patience = waited + 1 if self._is_lost(waited + 1, step) else sys.maxsize
        yield
        self.patience = given
        if self.best_score is not best:
            self.best_step = step
        if self.best_score is not best or self.wait_count != waited:
            self._checked_step = step
