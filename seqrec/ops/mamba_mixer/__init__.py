"""The mixers of Mamba and Mamba-2 over whole histories, from their input to their output, as one op each.

Letters: B batch, L events, M model width, E channels, N states per channel, W taps of the convolution, R rank of step
sizes, H heads of Mamba-2.
"""

from seqrec.ops.mamba_mixer.mamba import MAMBA_BACKENDS, MambaProblem, mamba_mixer
from seqrec.ops.mamba_mixer.mamba2 import MAMBA2_BACKENDS, NORM_EPS, Mamba2Problem, mamba2_mixer

__all__ = [
    "MAMBA2_BACKENDS",
    "MAMBA_BACKENDS",
    "NORM_EPS",
    "Mamba2Problem",
    "MambaProblem",
    "mamba2_mixer",
    "mamba_mixer",
]
