"""The backends of the state-space-dual scan, from the one that "auto" likes best."""

from __future__ import annotations

import torch

from seqrec.ops.backends import Backend, Backends
from seqrec.ops.ssd import mamba_ssm_scan
from seqrec.ops.ssd.chunked import ssd_chunked
from seqrec.ops.ssd.problem import Ssd, around
from seqrec.ops.ssd.reference import ssd_reference

REAL = (torch.float32, torch.float64)

SSD_BACKENDS: Backends[Ssd] = Backends(
    "ssd scan",
    "SEQREC_SSD_BACKEND",
    [
        Backend(
            "mamba_ssm",
            around(mamba_ssm_scan.ssd_mamba_ssm),
            "float32 on cuda",
            serves=lambda device, dtype: device == "cuda" and dtype == torch.float32,
            missing=mamba_ssm_scan.missing,
            lacks=frozenset({"start", mamba_ssm_scan.PLAIN_STEPS}),
            extra=True,
        ),
        Backend("chunked", around(ssd_chunked), "anywhere", serves=lambda device, dtype: dtype in REAL),
        Backend("reference", around(ssd_reference), "anywhere", serves=lambda device, dtype: dtype in REAL),
    ],
)
