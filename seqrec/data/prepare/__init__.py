"""From a raw log to an event store, out of core: read to a spool, number ids, partition, order, filter, write.

Importing this package does not import polars, because training on an existing store must work without it. Only
`prepare`, `ensure_store` and `append` do, when they make a store.
"""

from seqrec.data.prepare.filters import Filters
from seqrec.data.prepare.growing import append, compact
from seqrec.data.prepare.prepare import ensure_store, fingerprint, prepare

__all__ = ["Filters", "append", "compact", "ensure_store", "fingerprint", "prepare"]
