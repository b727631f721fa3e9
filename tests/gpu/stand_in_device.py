"""A stand-in for a GPU on a machine without one, which counts what a step asks of it.

Tensors of the CPU say that they are on a GPU, so that code takes the branches for a GPU, and `auto` chooses its
backends. torch's operations are computed, on the CPU. Kernels of Triton, and a layer of `nn.GRU`, are counted instead,
and their results are 0. Nothing is known of times on a GPU, nor of how many kernels an operation starts.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
# Operations for which Python waits until the GPU has done everything: they return values, or tensors whose sizes depend
# on values.
WAITING = {
    *("_local_scalar_dense", "bincount", "_coalesce", "equal", "is_nonzero", "masked_select", "nonzero"),
    *("unique_consecutive", "unique_dim", "_unique", "_unique2"),
}
# Functions that give Python the values of a tensor without one of these operations.
READING = ("tolist", "numpy", "__array__")
# Operations that read or write rows of their first argument.
ROW_OPS = ("embedding", "index_select", "index_add_", "index_copy_")
# Operations without a kernel, besides views.
FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "set_", "resize_"),
    *("_sparse_coo_tensor_with_dims_and_tensors", "_indices", "_values", "_nnz", "is_coalesced", "_coalesced_"),
    *("promote_types", "_unsafe_view", "_record_function_enter_new", "_record_function_exit", "_local_scalar_dense"),
}
# A GPU of 132 multiprocessors.
PROPERTIES = mock.Mock(multi_processor_count=132)


def waits_for_gpu(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether Python waits for a GPU in an operation that is not made of others."""
    name = func.name().removeprefix("aten::").partition(".")[0]
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    masks = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
    return name in WAITING or any(_is_flags(x) for x in masks)


@dataclass
class Counts:
    """What was asked of the device.

    Attributes:
        ops: Operations of torch that compute, by name; each starts one kernel or more.
        kernels: Kernels of Triton by name, and passes of `nn.GRU`.
        copies: Copies to the device and from it.
        graphs: Launches of graphs.
        in_graphs: Operations and kernels inside of them.
        waits: Operations for which Python waits until the device has nothing left to do, by name, and copies to the
            CPU, but for `non_blocking` ones.
        bytes: Bytes that operations and kernels read and write, also those in graphs.
    """

    ops: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    copies: int = 0
    graphs: int = 0
    in_graphs: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    @property
    def launches(self) -> int:
        """Operations, kernels, copies and graphs that Python starts one by one."""
        return self.ops.total() + self.kernels.total() + self.copies + self.graphs

    def add_op(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Count an operation of torch."""
        name, returns = op._schema.name.partition("::")[2], op._schema.returns
        arguments = [*args, *kwargs.values()]
        if waits_for_gpu(op, args, kwargs):
            self.waits[name] += 1
        is_view = bool(returns) and all(each.alias_info and not each.alias_info.is_write for each in returns)
        if name in FREE or is_view:
            return
        self.ops[name] += 1
        rows = [result] if name in ("embedding", "index_select") else arguments[1:]
        self.bytes += 2 * _size(rows) if name in ROW_OPS else _size([arguments, result])

    def add_kernel(self, name: str, arguments: Iterable[Any]) -> None:
        """Count a kernel that reads or writes each of its tensors once."""
        self.kernels[name] += 1
        self.bytes += _size(list(arguments))


def _is_flags(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)


def _size(values: Any) -> int:
    """Return the bytes of distinct tensors."""
    tensors = [x for x in tree_leaves(values) if isinstance(x, Tensor)]
    tensors = [part for x in tensors for part in ((x._indices(), x._values()) if x.is_sparse else (x,))]
    # An expanded tensor has fewer numbers in memory.
    return sum(
        {
            (x.data_ptr(), x.shape): min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in tensors
        }.values()
    )


class StandInDevice:
    """The stand-in; inside of `active` tensors are on it, but for those that a GPU's process has on the CPU too.

    Attributes:
        counts: Where to count; None does not.
        asked: Whether what is made now was asked for on the device.

    Example:
        device = StandInDevice()
        with device.active():
            device.counts = Counts()
            torch.ones(3, device="cuda") + 1
        assert device.counts.ops == {"ones": 1, "add": 1}
    """

    def __init__(self) -> None:
        self.counts: Counts | None = None
        self.asked = False
        # By memory, kept so that none is used anew.
        self._on_cpu: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Put all tensors on the device that were made before and are not `leave`n on the CPU."""
        stream = mock.Mock()
        with contextlib.ExitStack() as stack:
            for place, name, value in (
                (Tensor, "device", property(lambda x: CPU if self.is_on_cpu([x]) else GPU)),
                (Tensor, "is_cuda", property(lambda x: not self.is_on_cpu([x]))),
                (torch.cuda, "device", lambda device: contextlib.nullcontext()),
                (torch.cuda, "current_stream", lambda device=None: stream),
                (torch.cuda, "get_device_properties", lambda device=None: PROPERTIES),
                (torch.random, "fork_rng", lambda devices=(): contextlib.nullcontext()),
            ):
                stack.enter_context(mock.patch.object(place, name, value, create=True))
            stack.enter_context(kernels_as(self.add_kernel))
            stack.enter_context(_Functions(self))
            stack.enter_context(_Operations(self))
            yield

    def add_kernel(self, name: str, arguments: Iterable[Any]) -> None:
        """Count a kernel."""
        if self.counts is not None:
            self.counts.add_kernel(name, arguments)

    def is_on_cpu(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether all of some tensors are on the CPU."""
        return all(not x.is_sparse and x.untyped_storage().data_ptr() in self._on_cpu for x in tensors)

    def leave(self, values: Iterable[Any]) -> None:
        """Leave tensors on the CPU."""
        tensors = (x for x in values if isinstance(x, Tensor) and not x.is_sparse and x.numel())
        self._on_cpu.update({x.untyped_storage().data_ptr(): x.detach() for x in tensors})

    def moved(self, x: Tensor, *, to_device: bool, waits: bool) -> Tensor:
        """Return a tensor in a place, and count the copy if it is not there, for which Python waits or not."""
        if self.is_on_cpu([x]) != to_device:
            return x
        with _disable_current_modes():
            found = x.detach().clone()
        if not to_device:
            self.leave([found])
        if self.counts is not None:
            self.counts.copies += 1
            self.counts.waits.update(["copy"] if waits and not to_device else [])
        return found

    def read(self, x: Tensor, name: str) -> None:
        """Count a function that gives Python the values of a tensor."""
        if self.counts is not None and not self.is_on_cpu([x]):
            self.counts.waits[name] += 1


class _Operations(TorchDispatchMode):
    """Counts operations in both passes, and clears new memory, which kernels that are left out would not fill."""

    def __init__(self, device: StandInDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if "empty" in func._schema.name:
            out.zero_()
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if self.device.is_on_cpu(tensors) if tensors else not self.device.asked:
            self.device.leave(tree_leaves(out))
        elif self.device.counts is not None:
            self.device.counts.add_op(func, args, kwargs, out)
            if func._schema.name == "aten::copy_" and self.device.is_on_cpu(args[:1]) and not any(args[2:]):
                self.device.counts.waits["copy"] += 1
        return out


class _Functions(TorchFunctionMode):
    """Makes on the CPU what is asked for on the GPU, and computes at once what a GPU computes at once."""

    def __init__(self, device: StandInDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name == "_parse_to":
            return func(*args, **kwargs)
        places = [torch.device(x) for x in tree_leaves((args, kwargs)) if _is_place(x)]
        args, kwargs = tree_map(lambda x: CPU if _is_place(x) else x, (args, kwargs))
        if name == "gru":
            return _GRU.apply(self.device, args[0], args[1], *args[2])
        if name == "scaled_dot_product_attention":
            kwargs["dropout_p"] = 0.0  # with dropout a CPU computes it in pieces
        if name in READING:
            self.device.read(args[0], name)
        if name == "cpu" or (name == "to" and places):
            waits = not kwargs.get("non_blocking")
            args = (self.device.moved(args[0], to_device=places[:1] == [GPU], waits=waits), *args[1:])
        before, self.device.asked = self.device.asked, GPU in places
        try:
            return func(*args, **kwargs)
        finally:
            self.device.asked = before


def _is_place(x: Any) -> bool:
    return isinstance(x, torch.device) or (isinstance(x, str) and x in ("cpu", "cuda:0"))


class _GRU(torch.autograd.Function):
    """A layer of `nn.GRU`, of which cuDNN computes each pass in one call."""

    @staticmethod
    def forward(ctx: Any, device: StandInDevice, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.device, ctx.inputs = device, inputs
        device.add_kernel("gru", inputs)
        return torch.zeros_like(inputs[0]), inputs[1].detach().clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.device.add_kernel("gru backward", [*ctx.inputs, *gradients])
        return None, *(torch.zeros_like(each) for each in ctx.inputs)


@contextlib.contextmanager
def kernels_as(call: Callable[[str, Iterable[Any]], None]) -> Iterator[None]:
    """Call a function with the name and the arguments of each kernel of Triton instead of starting it."""
    from triton.runtime.jit import JITFunction

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        call(self.__name__, [*args, *kwargs.values()])

    with mock.patch.object(JITFunction, "run", run):
        yield
