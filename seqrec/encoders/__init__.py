"""Sequence encoders, named as in their papers."""

from seqrec.encoders.bert4rec import BERT4Rec
from seqrec.encoders.gru4rec import GRU4Rec
from seqrec.encoders.hrnn import HRNN
from seqrec.encoders.hstu import HSTU
from seqrec.encoders.mambarec import MambaRec
from seqrec.encoders.moematrrec import MoEMaTrRec
from seqrec.encoders.recmamba import RecMamba
from seqrec.encoders.samba import Samba
from seqrec.encoders.sasrec import SASRec
from seqrec.encoders.sequence_encoder import ENCODERS, SequenceEncoder
from seqrec.encoders.ssd4rec import SSD4Rec

__all__ = [
    "BERT4Rec",
    "ENCODERS",
    "GRU4Rec",
    "HRNN",
    "HSTU",
    "MambaRec",
    "MoEMaTrRec",
    "RecMamba",
    "SASRec",
    "SSD4Rec",
    "Samba",
    "SequenceEncoder",
]
