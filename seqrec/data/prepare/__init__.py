"""From a raw log to an event store, out of core: read to a spool, number ids, partition, order, filter, write.

Importing this package does not import polars, because training on an existing store must work without it. Only
`prepare` and `ensure_store` do, when they make a store.
"""

from seqrec.data.prepare.filters import Filters
from seqrec.data.prepare.prepare import ensure_store, fingerprint, prepare

__all__ = ["Filters", "ensure_store", "fingerprint", "prepare"]
