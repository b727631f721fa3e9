"""The backends of the causal convolution, in the order in which "auto" prefers them."""

from __future__ import annotations

from seqrec.ops.backends import Backend, Backends
from seqrec.ops.causal_conv1d.compiled import conv_compiled
from seqrec.ops.causal_conv1d.cuda_package import OTHER_TAPS, conv_package, missing
from seqrec.ops.causal_conv1d.problem import Convolution, with_state_and_padding
from seqrec.ops.causal_conv1d.reference import conv_reference
from seqrec.ops.causal_conv1d.shifted import convolve_shifted
from seqrec.ops.causal_conv1d.triton_launch import conv_triton, kernels
from seqrec.ops.compiled_library import compiled_backend
from seqrec.ops.cuda_packages import package_backend
from seqrec.ops.triton_support import triton_backend

CONV_BACKENDS: Backends[Convolution] = Backends(
    "causal convolution",
    "SEQREC_CONV_BACKEND",
    [
        compiled_backend(conv_compiled),
        triton_backend(conv_triton, kernels),
        package_backend("causal_conv1d", conv_package, missing, unsupported_args={OTHER_TAPS}),
        Backend("shifted", with_state_and_padding(convolve_shifted)),
        Backend("reference", conv_reference),
    ],
)
