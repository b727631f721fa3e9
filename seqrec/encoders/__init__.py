"""Sequence encoders by their papers' names."""

from seqrec.encoders.base import ENCODERS, SequenceEncoder
from seqrec.encoders.gru4rec import GRU4Rec
from seqrec.encoders.mambarec import MambaRec
from seqrec.encoders.moematrrec import MoEMaTrRec
from seqrec.encoders.recmamba import RecMamba
from seqrec.encoders.sasrec import SASRec

__all__ = ["ENCODERS", "GRU4Rec", "MambaRec", "MoEMaTrRec", "RecMamba", "SASRec", "SequenceEncoder"]
