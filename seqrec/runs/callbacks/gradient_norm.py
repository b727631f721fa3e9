"""The size of a step's gradient."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from seqrec.catalogue.sharding import ShardedEmbedding, total_norm
from seqrec.ops.row_gradients import sum_rows
from seqrec.runs.callbacks.run_monitor import is_logged


class GradientNorm(pl.Callback):
    """Logs `gradient_norm`, the L2 norm of all gradients before clipping, every `log_every_n_steps` of the trainer.

    Where tables have row-sparse gradients, `gradient_norm_tables` is the norm of those alone. Ranks have averaged
    their gradients before, and fp16's are unscaled. Nothing is logged under FSDP and model parallelism, where no rank
    has all gradients.
    """

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure the gradients of the step that follows."""
        split = isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy))
        if split or not is_logged(trainer, trainer.global_step + 1):
            return
        dense, tables = gradient_norms(pl_module)
        norm = dense if tables is None else torch.hypot(dense, tables)
        pl_module.log("gradient_norm", norm, batch_size=1)
        if tables is not None:
            pl_module.log("gradient_norm_tables", tables, batch_size=1)


@torch.no_grad()
def gradient_norms(module: torch.nn.Module) -> tuple[Tensor, Tensor | None]:
    """L2 norms of the dense gradients and of the row-sparse ones; all ranks must call where tables are sharded.

    Args:
        module: Whose parameters have gradients; those without one count as 0.

    Returns:
        Scalars; None for the second where no gradient is row-sparse.
    """
    spread = {id(m.weight) for m in module.modules() if isinstance(m, ShardedEmbedding) and m.is_spread}
    gradients = [(id(p), p.grad) for p in module.parameters() if p.grad is not None]
    dense = [gradient for _, gradient in gradients if not gradient.is_sparse]
    # A row that occurs twice counts as what it adds up to.
    rows = {number: sum_rows(gradient)[1] for number, gradient in gradients if gradient.is_sparse}
    whole = [values for number, values in rows.items() if number not in spread]
    own = [values for number, values in rows.items() if number in spread]
    return total_norm(dense, []), total_norm(whole, own) if rows else None
