"""Sources of logs. To add one: a file here with a registered `Source`, and its line below."""

from seqrec.data.sources.base import SOURCES, Source
from seqrec.data.sources.kuairand import KuaiRand
from seqrec.data.sources.lfm_1b import LFM1b
from seqrec.data.sources.ml_1m import ML1M
from seqrec.data.sources.sequences import Sequences
from seqrec.data.sources.synthetic import Synthetic
from seqrec.data.sources.table import Table

__all__ = ["KuaiRand", "LFM1b", "ML1M", "SOURCES", "Sequences", "Source", "Synthetic", "Table"]
