"""A stand-in for CUDA graphs on a CPU: operations of torch are recorded, and repeated in the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu.stand_in_device import waits_for_gpu
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqrec.ops import ALL_BACKENDS
from seqrec.training.recorder import Recorder


class Tape(TorchDispatchMode):
    """Runs operations, and remembers them with their operands and results, as a CUDA graph does.

    It refuses operations for which Python would wait for a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # What is made of other operations, of which each is seen.
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        if waits_for_gpu(func, args, kwargs):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.name()}")
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def repeat(self) -> None:
        """Compute each operation again from what its operands hold by now, and keep the result where it was."""
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                # Not what is a view of an operand, or was written to.
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapeRecorder(Recorder):
    """Records functions as tapes."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    def warm_up(self, function: Callable[[], None]) -> None:
        function()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        # A CUDA graph computes nothing while it is recorded, and so draws nothing.
        with torch.random.fork_rng([]), Tape() as tape:
            function()
        self.tapes.append(tape)
        return tape.repeat


def use_operations_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ops use no compiled kernels, which a tape does not see, and read tables as on a GPU."""
    for backends in ALL_BACKENDS:
        wanted = next(name for name in ("chunked", "shifted", "torch", "reference") if name in backends.names)
        monkeypatch.setenv(backends.variable, wanted)
    for module in ("table", "scorer"):
        monkeypatch.setattr(f"seqrec.catalogue.{module}.sums_at_lookup", lambda device: False)
