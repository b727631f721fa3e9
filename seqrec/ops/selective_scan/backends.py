"""The backends of the selective scan, from the one that "auto" likes best."""

from __future__ import annotations

import torch

from seqrec.ops.backends import Backend, Backends
from seqrec.ops.compiled_library import compiled_backend
from seqrec.ops.selective_scan import compiled, mamba_ssm_scan, triton_scan
from seqrec.ops.selective_scan.chunked import scan_chunked
from seqrec.ops.selective_scan.problem import Scan, around
from seqrec.ops.selective_scan.reference import scan_reference
from seqrec.ops.triton_support import triton_backend

REAL = (torch.float32, torch.float64)

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
            serves=lambda device, dtype: device == "cuda" and dtype == torch.float32,
            missing=mamba_ssm_scan.missing,
            lacks=frozenset({"start", mamba_ssm_scan.TOO_MANY_STATES}),
            extra=True,
        ),
        Backend("chunked", around(scan_chunked), "anywhere", serves=lambda device, dtype: dtype in REAL),
        Backend("reference", around(scan_reference), "anywhere", serves=lambda device, dtype: dtype in REAL),
    ],
)
