"""The backends of the selective scan, from the one that "auto" likes best."""

from __future__ import annotations

import torch

from seqrec.ops.backends import Backend, Backends
from seqrec.ops.selective_scan import compiled
from seqrec.ops.selective_scan.chunked import scan_chunked
from seqrec.ops.selective_scan.problem import Scan, around
from seqrec.ops.selective_scan.reference import scan_reference

REAL = (torch.float32, torch.float64)

SCAN_BACKENDS: Backends[Scan] = Backends(
    "selective scan",
    "SEQREC_SCAN_BACKEND",
    [
        Backend(
            "cpp",
            compiled.scan_compiled,
            "float32 on cpu",
            serves=lambda device, dtype: device == "cpu" and dtype == torch.float32,
            missing=lambda: compiled.load_error(),
            lacks=frozenset({"valid", "start"}),
        ),
        Backend("chunked", around(scan_chunked), "anywhere", serves=lambda device, dtype: dtype in REAL),
        Backend("reference", around(scan_reference), "anywhere", serves=lambda device, dtype: dtype in REAL),
    ],
)
