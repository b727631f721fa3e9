"""The backends of the causal convolution, in the order in which "auto" prefers them."""

from __future__ import annotations

import torch

from seqrec.ops.backends import Backend, Backends, supports_real_numbers
from seqrec.ops.causal_conv1d import cuda_package
from seqrec.ops.causal_conv1d.compiled import conv_compiled
from seqrec.ops.causal_conv1d.problem import Convolution, with_state_and_padding
from seqrec.ops.causal_conv1d.reference import conv_reference
from seqrec.ops.causal_conv1d.shifted import convolve_shifted
from seqrec.ops.causal_conv1d.triton_launch import conv_triton, kernels
from seqrec.ops.compiled_library import compiled_backend
from seqrec.ops.triton_support import triton_backend

CONV_BACKENDS: Backends[Convolution] = Backends(
    "causal convolution",
    "SEQREC_CONV_BACKEND",
    [
        compiled_backend(conv_compiled),
        triton_backend(conv_triton, kernels),
        Backend(
            "causal_conv1d",
            cuda_package.conv_package,
            "float32 on cuda",
            supports=lambda device, dtype: device == "cuda" and dtype == torch.float32,
            missing=cuda_package.missing,
            unsupported_args=frozenset({cuda_package.OTHER_TAPS}),
            extra=True,
        ),
        Backend("shifted", with_state_and_padding(convolve_shifted), "anywhere", supports_real_numbers),
        Backend("reference", conv_reference, "anywhere", supports_real_numbers),
    ],
)
