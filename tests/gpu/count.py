"""Count what a training step asks of a GPU, on a machine without one.

    python -m tests.gpu.count
    python -m tests.gpu.count --encoders MambaRec SASRec --length 5000 --json_file counts.json

A model trains through Lightning on tensors of the CPU that say they were on a GPU, so that code takes the branches for
a GPU, and `auto` its backends. Kernels of Triton, and a layer of nn.GRU, are not computed but counted. Graphs are
recorded by a stand-in. So the counts are exact for torch's operations, and know nothing of time on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

ENCODERS = ("MambaRec", "SASRec", "GRU4Rec", "RecMamba")
GPU = torch.device("cuda", 0)
# Operations that make Python wait for the device: the size or the value of their result is read.
WAITS = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "_coalesce", "equal", "bincount")
# Operations that read or write some rows of their first argument.
ROW_OPS = ("embedding", "index_select", "index_add_", "index_copy_", "index_put_", "_index_put_impl_")
# Names of operations that compute nothing, besides views.
FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_sparse_coo_tensor_with_dims_and_tensors",
        "_indices", "_values", "is_coalesced", "_coalesced_", "set_", "resize_", "lift_fresh", "_nnz", "promote_types",
        "_unsafe_view", "_record_function_enter_new", "_record_function_exit", "_local_scalar_dense")  # fmt: skip
WARM_UP, COUNTED, TIMED = 3, 2, 30
# Stand-ins for a GPU of 132 multiprocessors.
PROPERTIES = mock.Mock(multi_processor_count=132, name="stand-in")


@dataclass
class Counts:
    """What a step asks of the device.

    Attributes:
        ops: Operations of torch that compute, by name; an operation starts one kernel or more.
        triton: Kernels of Triton, by name.
        graphs: Launches of graphs.
        in_graphs: Operations and kernels inside of them.
        copies: Copies from or to the CPU.
        waits: Operations for which Python waits until the device has done all that was asked of it.
        bytes: Bytes that operations and kernels read and write, inside of graphs too.
    """

    ops: Counter[str] = field(default_factory=Counter)
    triton: Counter[str] = field(default_factory=Counter)
    graphs: int = 0
    in_graphs: int = 0
    copies: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    @property
    def launches(self) -> int:
        """Operations, kernels and copies that Python starts one by one, and graphs."""
        return self.ops.total() + self.triton.total() + self.graphs + self.copies

    def add_op(self, name: str, overload: Any, arguments: Sequence[Any], result: Any) -> None:
        """Count an operation of torch."""
        picks = name == "index" and any(_is_flag(x) for x in tree_leaves(arguments[1:]))
        if name in WAITS or picks:
            self.waits[name] += 1
        returns = overload._schema.returns
        if name in FREE or (returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)):
            return
        self.ops[name] += 1
        if name in ROW_OPS:
            rows = [result] if name in ("embedding", "index_select") else list(arguments[1:])
            self.bytes += 2 * sum(_size(x) for x in tree_leaves(rows))
        else:
            self.bytes += _distinct([*tree_leaves(arguments), *tree_leaves(result)])

    def add_kernel(self, name: str, arguments: Iterable[Any]) -> None:
        """Count a kernel of Triton, which reads or writes all of its tensors."""
        self.triton[name] += 1
        self.bytes += _distinct(arguments)


def _is_flag(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)


def _size(x: Any) -> int:
    if not isinstance(x, Tensor):
        return 0
    return _size(x._values()) + _size(x._indices()) if x.is_sparse else x.numel() * x.element_size()


def _distinct(values: Iterable[Any]) -> int:
    tensors = {id(x) if x.is_sparse else (x.data_ptr(), x.shape): x for x in values if isinstance(x, Tensor)}
    return sum(map(_size, tensors.values()))


class _Dispatch(TorchDispatchMode):
    """Counts the operations of torch that reach the device, in both passes, and clears new memory."""

    def __init__(self, device: StandInDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, given = func._schema.name.partition("::")[2], [*args, *(kwargs or {}).values()]
        if "empty" in name:
            out.zero_()  # what kernels leave out must not be NaN
        tensors = [x for x in tree_leaves(given) if isinstance(x, Tensor)]
        if self.device.on_host(tensors) if tensors else not self.device.asked:
            self.device.put_on_host(tree_leaves(out))
        elif self.device.counts is not None:
            self.device.counts.add_op(name, func, given, out)
        return out


class _Functions(TorchFunctionMode):
    """Makes on the CPU what would be made on the GPU, and calls in one piece what a GPU computes in one piece."""

    def __init__(self, device: StandInDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, wanted = getattr(func, "__name__", ""), [x for x in tree_leaves((args, kwargs)) if _is_place(x)]
        if name == "_parse_to":
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(lambda x: torch.device("cpu") if _is_place(x) else x, (args, kwargs or {}))
        if name == "gru":
            return _GRU.apply(self.device, args[0], args[1], *args[2])
        if name == "scaled_dot_product_attention":
            # With dropout a CPU computes it in pieces.
            kwargs["dropout_p"] = 0.0
        if name == "cpu" or (name == "to" and wanted):
            there = name == "to" and torch.device(wanted[0]).type == "cuda"
            return self.device.moved(args[0], to_device=there).to(*args[1:], **kwargs) if name == "to" else (
                self.device.moved(args[0], to_device=False))
        before, self.device.asked = self.device.asked, any(torch.device(x).type == "cuda" for x in wanted)
        try:
            return func(*args, **kwargs)
        finally:
            self.device.asked = before


def _is_place(x: Any) -> bool:
    return isinstance(x, torch.device) or (isinstance(x, str) and x.partition(":")[0] in ("cuda", "cpu"))


class _GRU(torch.autograd.Function):
    """A layer of nn.GRU, which is one call of cuDNN for each pass."""

    @staticmethod
    def forward(ctx: Any, device: StandInDevice, x: Tensor, first: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.device, ctx.inputs = device, (x, first, *weights)
        device.kernel("cudnn gru", ctx.inputs)
        return torch.zeros_like(x), first.detach().clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.device.kernel("cudnn gru backward", [*ctx.inputs, *gradients])
        return None, *(torch.zeros_like(each) for each in ctx.inputs)


class StandInDevice:
    """A GPU that counts instead of computing; `counts` is None while nothing is counted."""

    def __init__(self) -> None:
        self.counts: Counts | None = None
        # Whether what is made now was asked for on the device.
        self.asked = False
        # Memory of tensors that are on the CPU in truth, which keep it from being used anew.
        self._host: dict[int, Tensor] = {}

    def on_host(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether all of some tensors are on the CPU."""
        return all(not x.is_sparse and x.untyped_storage().data_ptr() in self._host for x in tensors)

    def put_on_host(self, values: Iterable[Any]) -> None:
        """Let tensors be on the CPU."""
        tensors = (x for x in values if isinstance(x, Tensor) and not x.is_sparse and x.numel())
        self._host.update({x.untyped_storage().data_ptr(): x.detach() for x in tensors})

    def moved(self, x: Tensor, *, to_device: bool) -> Tensor:
        """Return a tensor in the place, copied if it is not there."""
        if self.on_host([x]) != to_device:
            return x
        with torch.utils._python_dispatch._disable_current_modes():
            found = x.detach().clone()
        if not to_device:
            self.put_on_host([found])
        if self.counts is not None:
            self.counts.copies += 1
        return found

    def kernel(self, name: str, arguments: Iterable[Any]) -> None:
        """Count a kernel that is not one of torch's operations."""
        if self.counts is not None:
            self.counts.add_kernel(name, arguments)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Let tensors say that they are on the device."""
        stream = mock.Mock()
        with contextlib.ExitStack() as stack:
            for place, name, value in (
                (Tensor, "device", property(lambda x: torch.device("cpu") if self.on_host([x]) else GPU)),
                (Tensor, "is_cuda", property(lambda x: not self.on_host([x]))),
                (torch.cuda, "device", lambda device: contextlib.nullcontext()),
                (torch.cuda, "current_stream", lambda device=None: stream),
                (torch.cuda, "get_device_properties", lambda device=None: PROPERTIES),
                (torch.random, "fork_rng", lambda devices=(): contextlib.nullcontext()),
            ):
                stack.enter_context(mock.patch.object(place, name, value, create=True))
            stack.enter_context(kernels_as(self.kernel))
            stack.enter_context(_Functions(self))
            stack.enter_context(_Dispatch(self))
            yield


@contextlib.contextmanager
def kernels_as(count: Callable[[str, Iterable[Any]], None]) -> Iterator[None]:
    """Call a function with the name and arguments of each kernel of Triton instead of starting it."""
    from triton.runtime.jit import JITFunction

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        count(self.__name__, [*args, *kwargs.values()])

    with mock.patch.object(JITFunction, "run", run):
        yield


def recorder(device: StandInDevice | None) -> Any:
    """Return a recorder of graphs that runs a step once, when it is recorded; see `GraphedLoss`."""
    from seqrec.training.graphs import Recorder

    class Records(Recorder):
        def warm_up(self, function: Callable[[], None]) -> None:
            function()

        def record(self, function: Callable[[], None]) -> Callable[[], None]:
            before, inside = device and device.counts, Counts()
            if device is not None:
                device.counts = inside
            function()
            if device is not None:
                device.counts = before

            def launch() -> None:
                if device is not None and device.counts is not None:
                    device.counts.graphs += 1
                    device.counts.in_graphs += inside.launches
                    device.counts.bytes += inside.bytes

            return launch

    return Records()


def graphed_step(device: StandInDevice | None) -> pl.Callback:
    """Return `GraphedStep` with the stand-in."""
    from seqrec.runs.callbacks import GraphedStep

    class Graphed(GraphedStep):
        def recorder(self, _: torch.device) -> Any:
            return recorder(device)

    return Graphed()


class _Watch(pl.Callback):
    """Counts steps, or times them; loading of batches and all callbacks count."""

    def __init__(self, device: StandInDevice | None) -> None:
        self.device = device
        self.counts: list[Counts] = []
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Before the next batch is copied.
        now = time.process_time()
        if batch_idx >= WARM_UP:
            self.seconds.append(now - self._began)
        self._began = now
        if self.device is not None and batch_idx >= WARM_UP:
            self.device.counts = Counts()
            self.counts.append(self.device.counts)


class _Accelerator(CPUAccelerator):
    """Accepts the stand-in."""

    def setup_device(self, device: torch.device) -> None:
        """Do nothing."""


def _train(model: Any, batches: list[Any], callbacks: list[pl.Callback], place: torch.device, clip: float | None) -> None:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    strategy = SingleDeviceStrategy(place, _Accelerator())
    trainer = pl.Trainer(strategy=strategy, max_epochs=1, callbacks=callbacks, gradient_clip_val=clip, **quiet)
    trainer.fit(model, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list will do


def _tensors(record: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, also of versions whose batches do not list them."""
    for value in vars(record).values():
        if isinstance(value, Tensor):
            yield value
        elif is_dataclass(value):
            yield from _tensors(value)


def _model(encoder: str, num_items: int, length: int, **settings: Any) -> Any:
    from seqrec import models

    torch.manual_seed(0)
    return getattr(models, encoder)(num_items, max_length=length, **settings)


def count_step(encoder: str, *, graphed: bool, batch_size: int, length: int, num_items: int, clip: float | None = None,
               **settings: Any) -> Counts:  # fmt: skip
    """Return the counts of a training step after the first ones.

    Args:
        encoder: Name of a preset.
        graphed: Whether forward and backward pass are graphs.
        batch_size: Full histories of a batch.
        length: Events of each.
        num_items: Items of the catalogue.
        clip: Norm to which gradients are clipped; None does not.
        settings: Other arguments of the preset.
    """
    from seqrec.benchmark.catalogue import full_batch

    device = StandInDevice()
    watch = _Watch(device)
    batches = [full_batch(num_items, batch_size, length) for _ in range(WARM_UP + COUNTED + 1)]
    model = _model(encoder, num_items, length, **settings)
    with device():
        for batch in batches:
            device.put_on_host(_tensors(batch))
        _train(model, batches, [watch, *([graphed_step(device)] if graphed else [])], GPU, clip)
    return watch.counts[COUNTED - 1]


def time_step(encoder: str, *, graphed: bool, clip: float | None = None, **settings: Any) -> float:
    """Return the seconds of the CPU of a step of one history with two events, the fastest of some.

    Kernels of Triton are left out, and torch's operations compute next to nothing: what remains is Python, Lightning
    and torch's own work for each operation. The table has 10,000 items, with row-sparse gradients if `item_table` says
    so. See `count_step` for the arguments.
    """
    from seqrec.benchmark.catalogue import full_batch
    from seqrec.runs.callbacks import FiniteLoss
    from seqrec.ops import ALL_BACKENDS
    from seqrec.ops.backends import Backend

    watch = _Watch(None)
    model = _model(encoder, 10_000, 2, **settings)
    batches = [full_batch(10_000, 1, 2) for _ in range(WARM_UP + TIMED + 1)]
    chosen = {op.variable: op.auto("cuda", torch.float32)[0].name for op in ALL_BACKENDS}
    check = mock.patch(f"{FiniteLoss.__module__}.math.isfinite", return_value=True)
    here = mock.patch.object(Backend, "why_unusable", lambda *_: None)
    with mock.patch.dict(os.environ, chosen), check, here, kernels_as(lambda name, arguments: None):
        _train(model, batches, [watch, *([graphed_step(None)] if graphed else [])], torch.device("cpu"), clip)
    return min(watch.seconds)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=ENCODERS)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--num_items", type=int, default=600_000)
    parser.add_argument("--d_model", type=int, default=32)
    parser.add_argument("--clip", type=float)
    parser.add_argument("--eager_only", action="store_true", help="for versions without CUDA graphs")
    parser.add_argument("--json_file", type=Path)
    given = parser.parse_args()
    settings = {"d_model": given.d_model, "num_layers": 2, "dropout": 0.2, "clip": given.clip}
    shape = {"batch_size": given.batch_size, "length": given.length, "num_items": given.num_items}
    rows = []
    for encoder in given.encoders:
        for graphed in (False,) if given.eager_only else (False, True):
            counts = count_step(encoder, graphed=graphed, **shape, **settings)
            seconds = time_step(encoder, graphed=graphed, **settings)
            rows.append({"encoder": encoder, "graphed": graphed, "launches": counts.launches, "seconds": seconds})
            rows[-1] |= {key: dict(value) if isinstance(value, Counter) else value for key, value in vars(counts).items()}
            print(
                f"{encoder:10} {'graphs' if graphed else 'eager':7} launches {counts.launches:4} "
                f"(ops {counts.ops.total()}, triton {counts.triton.total()}, copies {counts.copies}, graphs "
                f"{counts.graphs}), inside {counts.in_graphs}, waits {dict(counts.waits)}, "
                f"{counts.bytes / 2**20:,.0f} MiB, CPU {seconds * 1e3:.2f} ms",
                flush=True,
            )
    if given.json_file is not None:
        given.json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
