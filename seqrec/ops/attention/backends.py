"""The backends of attention, in the order in which "auto" prefers them."""

from __future__ import annotations

from seqrec.ops.attention.compiled import attention_compiled
from seqrec.ops.attention.problem import Attention
from seqrec.ops.attention.torch_attention import attention_reference, attention_torch
from seqrec.ops.backends import Backend, Backends
from seqrec.ops.compiled_library import compiled_backend

ATTENTION_BACKENDS: Backends[Attention] = Backends(
    "attention",
    "SEQREC_ATTENTION_BACKEND",
    [
        compiled_backend(attention_compiled),
        Backend(
            "torch",
            attention_torch,
            supports=lambda device, dtype: dtype.is_floating_point,
            unsupported_args=frozenset({"seed"}),
        ),
        Backend("reference", attention_reference),
    ],
)
