"""A table with rows sharded over processes. V rows, N processes, D width, U distinct rows of a lookup."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.catalogue.sharding.exchange import HostCopy, Route, RowShards, gathered
from seqrec.errors import InputError
from seqrec.ops.row_gradients import row_gradient, sum_rows

# Rows with initial values from one seed, whichever process owns them.
INITIAL_ROWS = 1 << 16


class ShardedEmbedding(nn.Embedding):
    """An embedding with V / N rows in each process of a job, with their gradients and optimizer state.

    It has no rows until `make_rows`, so no process ever allocates the whole table.

    **A training step.** A lookup gets its distinct rows from their owners by three all-to-alls: of counts, of numbers
    (8 bytes per row) and of rows (D numbers of the table's type). Gradients stay in the process that asked until
    `share_gradient`, which sums them by row over all lookups and accumulated batches, and sends each to its owner by
    three more (8 + 4 D bytes per row). A process holds `V / N x D` weights and state, the rows of its batch, and the
    rows that others ask for. Nothing is sent in the backward pass, so the exchanges cannot interleave with DDP's
    reductions in different orders, and the job's own process group can be used. All processes must make the same
    lookups in the same order.

    **Evaluation** reads different numbers of rows in each process, which exchanges do not allow. `open_whole` writes
    the table, once per host, to a file that its processes map: V x D numbers are sent and written. The part that is
    scored is copied from there to the device for each batch of users.

    **Checkpoints.** All processes call `state_dict`, which has the whole table on rank 0, on the CPU, sent in pieces
    of 64 MiB, and a tensor without data elsewhere. It is the state of an unsharded embedding. `load_state_dict` reads
    the whole table in each process and keeps the process's rows.

    **Alternatives.** Exchanges use `all_to_all_single` over gloo or NCCL. DTensor has the same layout, but no sparse
    gradients, and looks up all ids in all processes with an all-reduce of (B, L, D). torchrec has fused kernels and
    overlaps the exchanges with computation, but each release of its fbgemm needs one minor version of torch, and this
    package supports all from 2.6.

    Args:
        num_rows: V; row 0 is padding, zero, and never trained.
        width: D.
        std: Standard deviation at initialisation.
        zeros_from: First column that starts at 0; None for none.
        dtype: Storage type.
    """

    def __init__(
        self,
        num_rows: int,
        width: int,
        *,
        std: float,
        zeros_from: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_rows, width, padding_idx=0, sparse=True, device="meta", dtype=dtype)
        self.shards = RowShards(num_rows)
        self._std = std
        self._zeros_from = width if zeros_from is None else zeros_from
        self._seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        # Numbers and gradients of the rows of lookups since gradients were last shared.
        self._gradients: list[tuple[Tensor, Tensor]] = []
        self._host_copy: HostCopy | None = None

    @property
    def is_spread(self) -> bool:
        """Whether other processes hold rows of the table."""
        return self.shards.num_ranks > 1

    def make_rows(self, num_ranks: int = 1, rank: int = 0, device: torch.device | None = None) -> None:
        """Make this process's rows, or cut them out of a whole table; existing ones are unchanged.

        A row's initial value depends only on the seed of rank 0 and the row's number, not on N.

        Args:
            num_ranks: N; with more than one all processes of the job must call.
            rank: This process's rank.
            device: Device of new rows; None is torch's default.

        Raises:
            InputError: if the table is sharded over another number of processes.
        """
        shards = RowShards(self.num_embeddings, num_ranks, rank)
        self._host_copy = None
        if self.weight.is_meta:
            self.shards = shards
            if self.is_spread:
                seeds = [self._seed]
                dist.broadcast_object_list(seeds)
                self._seed = seeds[0]
            self._set_rows(self._initial_rows(device or torch.get_default_device()))
        elif self.is_spread and shards != self.shards:
            raise InputError(
                f"the item table is sharded over {self.shards.num_ranks} processes and cannot be used with "
                f"{num_ranks}: save a checkpoint and load it"
            )
        elif shards != self.shards:
            self.shards = shards
            self._set_rows(self.weight.detach()[shards.local].clone())

    def forward(self, item_ids: Tensor) -> Tensor:
        """Return rows (..., D) of numbers (...), at least in float32 if they are sharded.

        With gradients on, processes exchange rows, and all must call; otherwise rows come from the host's copy.

        Raises:
            InputError: if no rows exist yet, or other processes' rows are read outside of training and `open_whole`.
        """
        self.check_rows()
        if not self.is_spread:
            return super().forward(item_ids)
        if not torch.is_grad_enabled():
            found = self.host_copy.rows(item_ids)
            return found.to(torch.promote_types(found.dtype, torch.float32))
        distinct, places = torch.unique(item_ids, return_inverse=True)
        return F.embedding(places, self._fetched(distinct))

    def check_rows(self) -> None:
        """Raise an `InputError` if `make_rows` was not called."""
        if self.weight.is_meta:
            raise InputError(
                "this model's item table is sharded, and its rows are made within the job: call "
                "model.configure_model(), as trainers and load_from_checkpoint do"
            )

    @torch.no_grad()
    def share_gradient(self) -> None:
        """Set `weight.grad` to the mean of the rows' gradients over processes; all must call.

        A row that a process did not read counts as 0 there, as in DDP. If none of a process's rows was read, its
        gradient is empty, so steps are counted equally everywhere.
        """
        if not self.is_spread:
            return
        width = self.weight.shape[1]
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        row_ids = [torch.zeros(0, dtype=torch.int64, device=self.weight.device)]
        gradients = [torch.zeros(0, width, dtype=dtype, device=self.weight.device)]
        for numbers, gradient in self._gradients:
            row_ids.append(numbers)
            gradients.append(gradient)
        self._gradients = []
        whole = torch.Size((self.shards.num_rows, width))
        asked, summed = sum_rows(row_gradient(torch.cat(row_ids), torch.cat(gradients), whole, each_once=False))
        asked, summed = asked[asked > 0], summed[asked > 0]  # padding is not trained
        route = Route(asked, self.shards)
        own = route.to_owners(asked) - self.shards.local.start
        own, summed = sum_rows(row_gradient(own, route.to_owners(summed), self.weight.shape, each_once=False))
        mean = (summed / self.shards.num_ranks).to(self.weight.dtype)
        self.weight.grad = row_gradient(own, mean, self.weight.shape)

    @property
    def host_copy(self) -> HostCopy:
        """The whole table; an `InputError` outside of `open_whole` and `close_whole`."""
        if self._host_copy is None:
            raise InputError(
                "the item table is sharded over processes; without gradients it can only be read within "
                "trainer.validate, test and predict: use those, or load a checkpoint in one process"
            )
        return self._host_copy

    def open_whole(self) -> None:
        """Make the whole of a sharded table readable without exchanges, in its present state; all must call."""
        if self.is_spread:
            self._host_copy = HostCopy(self.weight.detach(), self.shards)

    def close_whole(self) -> None:
        """Release the copy that `open_whole` made."""
        self._host_copy = None

    def _fetched(self, row_ids: Tensor) -> Tensor:
        """Return rows (U, D) of ascending numbers (U,) from their owners; `share_gradient` sends their gradients."""
        route = Route(row_ids, self.shards)
        asked = route.to_owners(row_ids) - self.shards.local.start
        rows = route.from_owners(self.weight.detach()[asked])
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if self.weight.requires_grad:

            def keep(leaf: Tensor) -> None:
                assert leaf.grad is not None
                self._gradients.append((row_ids, leaf.grad))
                leaf.grad = None

            rows.requires_grad_().register_post_accumulate_grad_hook(keep)  # type: ignore[no-untyped-call]
        return rows

    def _initial_rows(self, device: torch.device) -> Tensor:
        """Return (V_local, D) normal numbers, zero at padding and from column `zeros_from`."""
        mine = self.shards.local
        rows = self.weight.new_empty((self.shards.num_local, self.embedding_dim), device=device)
        for first in range(mine.start // INITIAL_ROWS * INITIAL_ROWS, mine.stop, INITIAL_ROWS):
            seed = np.random.SeedSequence((self._seed, first)).generate_state(1, np.uint64)[0]
            generator = torch.Generator("cpu").manual_seed(int(seed))
            block = torch.empty(min(INITIAL_ROWS, self.num_embeddings - first), self.embedding_dim, device="cpu")
            block.normal_(std=self._std, generator=generator)
            block[:, self._zeros_from :] = 0
            if first == 0:
                block[0] = 0
            begin, end = max(first, mine.start), min(first + len(block), mine.stop)
            rows[begin - mine.start : end - mine.start] = block[begin - first : end - first].to(rows.device)
        return rows

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ShardedEmbedding:
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        except NotImplementedError:
            # A table without rows has nothing to move; `make_rows` gets their device.
            if not self.weight.is_meta:
                raise
        return self

    def _set_rows(self, rows: Tensor) -> None:
        self.weight = nn.Parameter(rows, requires_grad=self.weight.requires_grad)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.check_rows()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.is_spread:
            destination[f"{prefix}weight"] = gathered(self.weight.detach(), self.shards)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if self.weight.is_meta:
            self._set_rows(self.weight.new_empty(self.weight.shape, device=torch.get_default_device()))
        name = f"{prefix}weight"
        whole = state_dict.get(name)
        if self.is_spread and whole is not None:
            errors: list[str] = arguments[-1]
            if whole.is_meta:
                errors.append(f"{name} has no data, as only rank 0 has that of a sharded table: load a checkpoint")
                return
            if whole.shape != (self.num_embeddings, self.embedding_dim):
                errors.append(
                    f"size mismatch for {name}: {tuple(whole.shape)} in the checkpoint, "
                    f"{(self.num_embeddings, self.embedding_dim)} in the model"
                )
                return
            state_dict = {**state_dict, name: whole[self.shards.local]}
        super()._load_from_state_dict(state_dict, prefix, *arguments)
