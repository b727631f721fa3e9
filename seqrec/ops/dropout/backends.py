"""The backends of dropout, in the order in which "auto" prefers them."""

from __future__ import annotations

from seqrec.ops.backends import Backend, Backends
from seqrec.ops.compiled_library import compiled_backend
from seqrec.ops.dropout.compiled import dropout_compiled
from seqrec.ops.dropout.problem import Dropout, DropoutProblem
from seqrec.ops.dropout.torch_dropout import dropout_reference, dropout_torch

__all__ = ["DROPOUT_BACKENDS", "DropoutProblem"]

DROPOUT_BACKENDS: Backends[Dropout] = Backends(
    "dropout",
    "SEQREC_DROPOUT_BACKEND",
    [
        compiled_backend(dropout_compiled),
        Backend(
            "torch",
            dropout_torch,
            supports=lambda device, dtype: dtype.is_floating_point,
            unsupported_args=frozenset({"seed"}),
        ),
        Backend("reference", dropout_reference),
    ],
)
