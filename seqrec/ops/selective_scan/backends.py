"""The backends of the selective scan, from the one that "auto" likes best."""

from __future__ import annotations

import torch

from seqrec.ops.backends import Backend, Backends, supports_real_numbers
from seqrec.ops.compiled_library import compiled_backend
from seqrec.ops.selective_scan import compiled, mamba_ssm_scan, triton_scan
from seqrec.ops.selective_scan.chunked import scan_chunked
from seqrec.ops.selective_scan.problem import Scan, with_gate_and_padding
from seqrec.ops.selective_scan.reference import scan_reference
from seqrec.ops.triton_support import triton_backend

SCAN_BACKENDS: Backends[Scan] = Backends(
    "selective scan",
    "SEQREC_SCAN_BACKEND",
    [
        compiled_backend(compiled.scan_compiled),
        triton_backend(triton_scan.scan_triton, triton_scan.launch),
        Backend(
            "mamba_ssm",
            mamba_ssm_scan.scan_mamba_ssm,
            "float32 on cuda",
            supports=lambda device, dtype: device == "cuda" and dtype == torch.float32,
            missing=mamba_ssm_scan.missing,
            unsupported_args=frozenset({"start", mamba_ssm_scan.TOO_MANY_STATES}),
            extra=True,
        ),
        Backend(
            "chunked",
            with_gate_and_padding(scan_chunked),
            "anywhere",
            supports=supports_real_numbers,
        ),
        Backend(
            "reference",
            with_gate_and_padding(scan_reference),
            "anywhere",
            supports=supports_real_numbers,
        ),
    ],
)
