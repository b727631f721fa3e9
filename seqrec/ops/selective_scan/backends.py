"""The backends of the selective scan, in the order in which "auto" prefers them."""

from __future__ import annotations

from seqrec.ops.backends import Backend, Backends
from seqrec.ops.compiled_library import compiled_backend
from seqrec.ops.cuda_packages import package_backend
from seqrec.ops.problems import with_gate_and_padding
from seqrec.ops.selective_scan.chunked import scan_chunked
from seqrec.ops.selective_scan.compiled import scan_compiled
from seqrec.ops.selective_scan.cuda_package import TOO_MANY_STATES, missing, scan_mamba_ssm
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
        package_backend("mamba_ssm", scan_mamba_ssm, missing, unsupported_args={"start", TOO_MANY_STATES}),
        Backend("chunked", with_gate_and_padding(scan_chunked)),
        Backend("reference", with_gate_and_padding(scan_reference)),
    ],
)
