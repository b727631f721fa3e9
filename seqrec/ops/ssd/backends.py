"""The backends of the state-space-dual scan, in the order in which "auto" prefers them."""

from __future__ import annotations

import torch

from seqrec.ops.backends import Backend, Backends, supports_real_numbers
from seqrec.ops.problems import with_gate_and_padding
from seqrec.ops.ssd import cuda_package
from seqrec.ops.ssd.chunked import ssd_chunked
from seqrec.ops.ssd.problem import Ssd
from seqrec.ops.ssd.reference import ssd_reference

SSD_BACKENDS: Backends[Ssd] = Backends(
    "ssd scan",
    "SEQREC_SSD_BACKEND",
    [
        Backend(
            "mamba_ssm",
            with_gate_and_padding(cuda_package.ssd_mamba_ssm),
            "float32 on cuda",
            supports=lambda device, dtype: device == "cuda" and dtype == torch.float32,
            missing=cuda_package.missing,
            unsupported_args=frozenset({"start", cuda_package.PLAIN_STEPS}),
            extra=True,
        ),
        Backend("chunked", with_gate_and_padding(ssd_chunked), "anywhere", supports_real_numbers),
        Backend("reference", with_gate_and_padding(ssd_reference), "anywhere", supports_real_numbers),
    ],
)
