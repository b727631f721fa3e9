"""Numbers of a step that Python reads, without a GPU running dry."""

from __future__ import annotations

import torch
from torch import Tensor


class PendingCopy:
    """A small tensor on its way to the CPU.

    Reading a tensor of a GPU makes Python wait for all that was launched before, with nothing launched meanwhile. This
    one asks for the copy where it is made, and waits, where it is read, for what came before that alone: what was
    launched in between keeps the GPU busy.

    Args:
        value: Of any shape and device, written to by nobody until it is read; its graph is left behind.
    """

    def __init__(self, value: Tensor) -> None:
        value = value.detach()
        self._event: torch.cuda.Event | None = None
        if value.device.type == "cuda":
            # torch takes page-locked memory for such a copy, without which Python would wait here.
            self._value = value.to("cpu", non_blocking=True)
            self._event = torch.cuda.current_stream(value.device).record_event()
        else:
            self._value = value.cpu()

    def read(self) -> Tensor:
        """The tensor on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return self._value
