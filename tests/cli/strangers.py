"""What shows that code of others ran: a module, and an object that a pickle makes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

MODULE = """
from pathlib import Path
from torch import nn
from seqrec.encoders import SequenceEncoder
Path({marker!r}).touch()

def touch(*args, **kwargs):
    Path({marker!r}).touch()

class Mean(SequenceEncoder):
    def __init__(self, d_model: int = 8):
        super().__init__(d_model, num_layers=1, dropout=0.0, layer_norm=False)

    def forward(self, x, history):
        return x.cumsum(1)
"""


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.file}",)
