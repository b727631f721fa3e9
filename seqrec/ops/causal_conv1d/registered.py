"""The backends of the causal convolution, from the one that "auto" likes best."""

from __future__ import annotations

import torch

from seqrec.ops import compiled_library, triton_support
from seqrec.ops.backends import Backend, Backends
from seqrec.ops.causal_conv1d import cuda_package, triton_conv
from seqrec.ops.causal_conv1d.compiled import conv_compiled
from seqrec.ops.causal_conv1d.problem import Convolution, around
from seqrec.ops.causal_conv1d.reference import conv_reference
from seqrec.ops.causal_conv1d.shifted import convolve_shifted

REAL = (torch.float32, torch.float64)

CONV_BACKENDS: Backends[Convolution] = Backends(
    "causal convolution",
    "SEQREC_CONV_BACKEND",
    [
        Backend(
            "cpp",
            conv_compiled,
            "float32 on cpu",
            serves=lambda device, dtype: device == "cpu" and dtype == torch.float32,
            missing=compiled_library.load_error,
        ),
        Backend(
            "triton",
            triton_conv.conv_triton,
            "float32 on cuda, or on cpu alone where TRITON_INTERPRET=1",
            serves=triton_support.serves,
            missing=triton_conv.missing,
            only_by_name=frozenset({"cpu"}),
        ),
        Backend(
            "causal_conv1d",
            cuda_package.conv_package,
            "float32 on cuda",
            serves=lambda device, dtype: device == "cuda" and dtype == torch.float32,
            missing=cuda_package.missing,
            lacks=frozenset({cuda_package.OTHER_TAPS}),
            extra=True,
        ),
        Backend("shifted", around(convolve_shifted), "anywhere", serves=lambda device, dtype: dtype in REAL),
        Backend("reference", conv_reference, "anywhere", serves=lambda device, dtype: dtype in REAL),
    ],
)
