"""Record functions as CUDA graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from seqrec.errors import InputError

# Runs before a recording, in which libraries load and allocate what they need only once.
WARM_UPS = 2


class Recorder(ABC):
    """Records functions that take and return nothing, and read and write the same memory in each call."""

    @abstractmethod
    def warm_up(self, function: Callable[[], None]) -> None:
        """Run a function as it will be recorded."""

    @abstractmethod
    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record a function without running it, and return a function that runs what was recorded."""


class CudaRecorder(Recorder):
    """Records functions as CUDA graphs, which share their memory: only one of them may run at a time.

    Numbers drawn from torch's generator of the device are new at each run, from the generator's state.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run a function on the stream of the recordings."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function()
        current.wait_stream(self._stream)

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record a function as a CUDA graph, and return the function that launches it."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            # Other threads may allocate memory meanwhile, for batches to come.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                function()
        finally:
            # torch stays on the other stream if the recording fails.
            torch.cuda.set_stream(current)
        return graph.replay


def recordings(
    recorder: Recorder, functions: Sequence[Callable[[], None]], device: torch.device, *, what: str, remedy: str
) -> list[Callable[[], None]]:
    """Warm functions up, one after the other, and record each of them.

    Args:
        recorder: Records them.
        functions: Take and return nothing, and read and write the same memory in each call.
        device: The device whose generator they may draw from.
        what: What they are, and `remedy` what to do without a recording, for an error.
        remedy: See `what`.

    Raises:
        InputError: if one cannot be recorded, such as one that reads a value of the device.
    """
    try:
        # The first launch then draws what the step would have drawn without a recording.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for _ in range(WARM_UPS):
                for function in functions:
                    recorder.warm_up(function)
        return [recorder.record(function) for function in functions]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # The end of a failed recording is an error too, which hides the first one.
        first = error.__context__ or error
        reason = next(iter(str(first).splitlines()), type(first).__name__)
        raise InputError(f"{what} cannot be recorded as a CUDA graph: {reason}; {remedy}") from error
