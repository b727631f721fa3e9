"""The backends of the state-space-dual scan, in the order in which "auto" prefers them."""

from __future__ import annotations

from seqrec.ops.backends import Backend, Backends
from seqrec.ops.compiled_library import compiled_backend
from seqrec.ops.cuda_packages import package_backend
from seqrec.ops.problems import with_gate_and_padding
from seqrec.ops.ssd.chunked import ssd_chunked
from seqrec.ops.ssd.compiled import ssd_compiled
from seqrec.ops.ssd.cuda_package import PLAIN_STEPS, missing, ssd_mamba_ssm
from seqrec.ops.ssd.problem import Ssd
from seqrec.ops.ssd.reference import ssd_reference

SSD_BACKENDS: Backends[Ssd] = Backends(
    "ssd scan",
    "SEQREC_SSD_BACKEND",
    [
        package_backend(
            "mamba_ssm", with_gate_and_padding(ssd_mamba_ssm), missing, unsupported_args={"start", PLAIN_STEPS}
        ),
        compiled_backend(with_gate_and_padding(ssd_compiled)),
        Backend("chunked", with_gate_and_padding(ssd_chunked)),
        Backend("reference", with_gate_and_padding(ssd_reference)),
    ],
)
