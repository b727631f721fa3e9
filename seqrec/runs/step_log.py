"""Logging what each training step has to say, at a small part of what `LightningModule.log` takes for it."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import Tensor


def log_step(module: pl.LightningModule, name: str, value: Tensor, *, on_step: bool) -> None:
    """`module.log(name, value, prog_bar=True, batch_size=1)`, for a hook that says so at every step.

    The first call of an epoch is just that. Later ones hand the value to what Lightning made then, where `log` would
    copy and compare all settings and search all that belongs to the value for tensors to move.

    Args:
        module: Within one of its hooks.
        name: What it is called.
        value: Scalar, on the same device at all steps.
        on_step: Whether the step's value is logged; else the mean of the epoch, at its end.
    """
    results = module._trainer._results if module._trainer is not None else None
    key = f"{module._current_fx_name}.{name}"
    logged = None if results is None else results.get(key)
    if results is None or logged is None or logged.has_reset:
        module.log(name, value, prog_bar=True, on_step=on_step, on_epoch=not on_step, batch_size=1)
    else:
        results.update_metrics(key, value, 1)
