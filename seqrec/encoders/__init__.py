"""Sequence encoders, named as in their papers."""

from seqrec.encoders.gru4rec import GRU4Rec
from seqrec.encoders.mambarec import MambaRec
from seqrec.encoders.moematrrec import MoEMaTrRec
from seqrec.encoders.recmamba import RecMamba
from seqrec.encoders.samba import Samba
from seqrec.encoders.sasrec import SASRec
from seqrec.encoders.sequence_encoder import ENCODERS, SequenceEncoder

__all__ = ["ENCODERS", "GRU4Rec", "MambaRec", "MoEMaTrRec", "RecMamba", "SASRec", "Samba", "SequenceEncoder"]
