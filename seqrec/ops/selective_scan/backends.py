"""The backends of the selective scan, in the order in which "auto" prefers them."""

from __future__ import annotations

import torch

from seqrec.ops.backends import Backend, Backends, supports_real_numbers
from seqrec.ops.compiled_library import compiled_backend
from seqrec.ops.problems import with_gate_and_padding
from seqrec.ops.selective_scan import cuda_package
from seqrec.ops.selective_scan.chunked import scan_chunked
from seqrec.ops.selective_scan.compiled import scan_compiled
from seqrec.ops.selective_scan.problem import Scan
from seqrec.ops.selective_scan.reference import scan_reference
from seqrec.ops.selective_scan.triton_launch import kernels, scan_triton
from seqrec.ops.triton_support import triton_backend

SCAN_BACKENDS: Backends[Scan] = Backends(
    "selective scan",
    "SEQREC_SCAN_BACKEND",
    [
        compiled_backend(scan_compiled),
        triton_backend(scan_triton, kernels),
        Backend(
            "mamba_ssm",
            cuda_package.scan_mamba_ssm,
            "float32 on cuda",
            supports=lambda device, dtype: device == "cuda" and dtype == torch.float32,
            missing=cuda_package.missing,
            unsupported_args=frozenset({"start", cuda_package.TOO_MANY_STATES}),
            extra=True,
        ),
        Backend("chunked", with_gate_and_padding(scan_chunked), "anywhere", supports_real_numbers),
        Backend("reference", with_gate_and_padding(scan_reference), "anywhere", supports_real_numbers),
    ],
)
