"""Sources of logs. To add a published log, declare it in `public_logs`. To add another kind, add a file with a subclass
of `Source`, and its line below.

Importing the sources does not import polars, because training on an existing store only needs their names and
arguments. Each `scan` imports the reader that it needs.
"""

from seqrec.data.sources.kuairand import KuaiRand
from seqrec.data.sources.lfm_1b import LFM1b
from seqrec.data.sources.ml_1m import ML1M
from seqrec.data.sources.public_log import PublicLog
from seqrec.data.sources.sequences import Sequences
from seqrec.data.sources.source import SOURCES, Source
from seqrec.data.sources.synthetic import Synthetic
from seqrec.data.sources.table import Table

__all__ = ["KuaiRand", "LFM1b", "ML1M", "PublicLog", "SOURCES", "Sequences", "Source", "Synthetic", "Table"]
