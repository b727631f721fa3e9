"""Losses whose forward and backward pass are recorded once a shape, and then launched as a whole."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from seqrec.data.padding import PaddedBatch, padded_size
from seqrec.ops.row_gradients import Lookup, collected_lookups, row_gradient
from seqrec.training.optim.combined import sparse_tables
from seqrec.training.recorder import Recorder, recordings
from seqrec.types import SequenceBatch

# Numbers between the starts of two gradients in memory, so that optimisers read whole vectors.
ALIGNMENT = 64


class GraphedLoss:
    """The loss of a batch, with gradients, computed by two recordings of its padded shape: forward and backward.

    A call copies the batch into a `PaddedBatch` and runs the first recording. The loss that it returns has an ordinary
    backward pass, which runs the second one and gives each parameter a gradient. Accumulation, clipping, hooks of
    parameters and DistributedDataParallel therefore work as without recordings.

    Batches of another number of rows, and those whose shape would need another recording than `max_graphs`, are
    computed without one. `recorded` and `eager` count batches, `num_graphs` recorded shapes.

    Args:
        model: A module with `loss_of_batch`, whose parameters keep their memory. If they get other memory, or another
            `requires_grad`, shapes are recorded again.
        recorder: Records the passes.
        num_rows: Rows of batches that are recorded; None is those of the first batch.
        max_length: Events of the longest batches, which are then not padded; None is unknown.
        needs_seen: Whether the loss reads the items that users have seen.
        max_graphs: Shapes that are recorded, at most.
    """

    def __init__(
        self,
        model: nn.Module,
        recorder: Recorder,
        *,
        num_rows: int | None,
        max_length: int | None,
        needs_seen: bool,
        max_graphs: int,
    ) -> None:
        self.recorded = self.eager = 0
        self._loss_of: Callable[[SequenceBatch], Tensor] = model.loss_of_batch  # type: ignore[assignment]
        self._model = model
        self._recorder = recorder
        self._num_rows = num_rows
        self._max_length = max_length
        self._needs_seen = needs_seen
        self._max_graphs = max_graphs
        self._steps: dict[int, _RecordedStep] = {}
        self._memory: tuple[Any, ...] = ()
        self._gradients: _Gradients | None = None
        self._most_seen = 0

    @property
    def num_graphs(self) -> int:
        """Number of shapes that are recorded."""
        return len(self._steps)

    def __call__(self, batch: SequenceBatch) -> Tensor:
        """Return the mean loss over a batch's targets; see `Loss.forward`.

        Raises:
            InputError: if the model or its objective cannot be recorded.
        """
        step = self._step_for(batch)
        if step is None:
            self.eager += 1
            return self._loss_of(batch)
        self.recorded += 1
        step.batch.fill(batch)
        loss: Tensor = _Launch.apply(step, *step.memory.parameters)  # type: ignore[no-untyped-call]
        return loss

    def _step_for(self, batch: SequenceBatch) -> _RecordedStep | None:
        """Return the recording of a batch's shape, which is made now if there is none; None if it is not recorded."""
        memory = tuple((each.data_ptr(), each.requires_grad) for each in self._model.parameters())
        if memory != self._memory:
            self._steps.clear()
            self._memory, self._gradients = memory, None
        rows, length = batch.history.item_ids.shape
        self._num_rows = self._num_rows or rows
        length = padded_size(length, most=self._max_length)
        step = self._steps.get(length)
        if rows != self._num_rows or (step is None and len(self._steps) >= self._max_graphs):
            return None
        num_seen = len(batch.seen_events.item_ids) if self._needs_seen else 0
        if step is None or len(step.batch.seen_events.item_ids) < num_seen:
            if self._gradients is None:
                self._gradients = _Gradients(self._model)
            self._most_seen = max(self._most_seen, num_seen)
            room = padded_size(self._most_seen) if self._most_seen else 0
            padded = PaddedBatch.like(batch, num_events=length, num_seen=room)
            padded.fill(batch)
            step = self._steps[length] = self._record(padded)
        return step

    def _record(self, batch: PaddedBatch) -> _RecordedStep:
        assert self._gradients is not None
        step = _RecordedStep(self._model, self._loss_of, batch, self._gradients)
        step.launch_forward, step.launch_backward = recordings(
            self._recorder,
            [step.forward, step.backward],
            batch.user_ids.device,
            what=f"the training step of {type(self._model).__name__}",
            remedy="leave GraphedStep out",
        )
        return step


class _Gradients:
    """Memory of the dense gradients of parameters, one after another, which all recordings of a model write.

    Attributes:
        parameters: Those that require a gradient.
        dense: Memory of each gradient that is not row-sparse, by the place of its parameter.
        launches: Passes launched so far, because a backward pass must follow its forward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [each for each in model.parameters() if each.requires_grad]
        self.launches = 0
        tables = {id(table) for table in sparse_tables(model)}
        self._places = [place for place, each in enumerate(self.parameters) if id(each) not in tables]
        self._sizes: dict[torch.dtype, list[int]] = {}
        for each in self._dense_parameters():
            self._sizes.setdefault(each.dtype, []).extend((each.numel(), -each.numel() % ALIGNMENT))
        device = self.parameters[0].device
        self._flat = {
            dtype: torch.zeros(sum(sizes), dtype=dtype, device=device) for dtype, sizes in self._sizes.items()
        }
        self.dense = self._parts(self._flat)

    def copies(self) -> dict[int, Tensor]:
        """Return copies of `dense`, which parameters may keep."""
        return self._parts({dtype: flat.clone() for dtype, flat in self._flat.items()})

    def _parts(self, flat: dict[torch.dtype, Tensor]) -> dict[int, Tensor]:
        parts = {dtype: iter(torch.split(each, self._sizes[dtype])[::2]) for dtype, each in flat.items()}
        found = [next(parts[each.dtype]).view(each.shape) for each in self._dense_parameters()]
        return dict(zip(self._places, found, strict=True))

    def _dense_parameters(self) -> list[nn.Parameter]:
        return [self.parameters[place] for place in self._places]


class _RecordedStep:
    """The passes of one shape, their input and their results."""

    launch_forward: Callable[[], None]
    launch_backward: Callable[[], None]

    def __init__(
        self,
        model: nn.Module,
        loss_of: Callable[[SequenceBatch], Tensor],
        batch: PaddedBatch,
        memory: _Gradients,
    ) -> None:
        device = batch.user_ids.device
        self.batch = batch
        self.memory = memory
        self.loss = torch.zeros((), device=device)
        # The gradient of the loss: its weight, its share of an accumulated batch, and the scale of fp16.
        self.scale = torch.ones((), device=device)
        self._model = model
        self._loss_of = loss_of
        self._autocast: dict[str, Any] = {
            "device_type": device.type,
            "dtype": torch.get_autocast_dtype(device.type),
            "enabled": torch.is_autocast_enabled(device.type),
            # Weights that were cast before the recording would not be cast again.
            "cache_enabled": False,
        }
        self._live: Tensor | None = None
        self._leaves: list[nn.Parameter] = []
        self._lookups: list[Lookup] = []
        # Places of parameters that have a dense gradient; rows (N,) and values (N, D) of each row-sparse one.
        self._dense: list[int] = []
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(self) -> None:
        """Compute the loss."""
        with (
            torch.enable_grad(),
            torch.autocast(**self._autocast),
            _aliases(self._model) as self._leaves,
            collected_lookups() as self._lookups,
        ):
            self._live = self._loss_of(self.batch)
        self.loss.copy_(self._live.detach())

    def backward(self) -> None:
        """Compute the gradients of the loss that `forward` computed, into memory that recordings do not reuse."""
        assert self._live is not None
        inputs = [*self._leaves, *(lookup.rows for lookup in self._lookups)]
        scale = self.scale.to(self._live.dtype)
        with torch.autocast(self.scale.device.type, enabled=False):
            found = torch.autograd.grad(self._live, inputs, scale, allow_unused=True)
        count = len(self._leaves)
        dense = {place: each for place, each in enumerate(found[:count]) if each is not None}
        if strange := dense.keys() - self.memory.dense.keys():
            shape = tuple(self._leaves[min(strange)].shape)
            raise RuntimeError(f"row-sparse gradients of a table of shape {shape} that is no ItemEmbedding")
        self._dense = list(dense)
        torch._foreach_copy_([self.memory.dense[place] for place in dense], list(dense.values()))
        self._keep_rows(found[count:])
        self._live, self._leaves, self._lookups = None, [], []

    def _keep_rows(self, gradients: Sequence[Tensor | None]) -> None:
        """Copy the row-sparse gradients, given those of the rows of each lookup."""
        places = {id(leaf): place for place, leaf in enumerate(self._leaves)}
        parts: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for lookup, gradient in zip(self._lookups, gradients, strict=True):
            if gradient is not None and id(lookup.table) in places:
                parts.setdefault(places[id(lookup.table)], []).append(lookup.gradient_parts(gradient))
        for place, of_table in parts.items():
            row_ids, values = (torch.cat(each) for each in zip(*of_table, strict=True))
            if place not in self._rows:
                self._rows[place] = torch.empty_like(row_ids), torch.empty_like(values)
            self._rows[place][0].copy_(row_ids)
            self._rows[place][1].copy_(values)

    def gradients(self) -> list[Tensor | None]:
        """Return copies of what `backward` computed, for each parameter."""
        parameters, copies = self.memory.parameters, self.memory.copies()
        found: list[Tensor | None] = [None] * len(parameters)
        for place in self._dense:
            found[place] = copies[place]
        for place, (row_ids, values) in self._rows.items():
            found[place] = row_gradient(row_ids.clone(), values.clone(), parameters[place].shape, each_once=False)
        return found


class _Launch(torch.autograd.Function):
    """Launches a step's recordings as forward and backward pass."""

    @staticmethod
    def forward(ctx: Any, step: _RecordedStep, *parameters: Tensor) -> Tensor:
        step.memory.launches += 1
        ctx.step, ctx.launches = step, step.memory.launches
        step.launch_forward()
        return step.loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        step: _RecordedStep = ctx.step
        if step.memory.launches != ctx.launches:
            raise RuntimeError("a recorded loss has one backward pass, before the next loss is computed")
        step.memory.launches += 1
        step.scale.copy_(gradient)
        step.launch_backward()
        return None, *step.gradients()


@contextmanager
def _aliases(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Replace a model's parameters by others in the same memory; yield those that require a gradient.

    The parameters themselves belong to the stream that first used them, on which DistributedDataParallel waits for
    their gradients. A recording must not touch it.
    """
    places = [(part, name) for part in model.modules() for name, it in part._parameters.items() if it is not None]
    originals = [getattr(part, name) for part, name in places]
    aliases = {id(each): nn.Parameter(each.detach(), requires_grad=each.requires_grad) for each in originals}
    try:
        _put(places, [aliases[id(each)] for each in originals])
        yield [each for each in aliases.values() if each.requires_grad]
    finally:
        _put(places, originals)


def _put(places: list[tuple[nn.Module, str]], parameters: list[nn.Parameter]) -> None:
    for (part, name), parameter in zip(places, parameters, strict=True):
        setattr(part, name, parameter)
        if isinstance(part, nn.RNNBase):
            # Otherwise torch would move new weights into other memory, in one piece. These are there already.
            refs = [None if each is None else weakref.ref(each) for each in part._flat_weights]
            part._flat_weight_refs = refs
