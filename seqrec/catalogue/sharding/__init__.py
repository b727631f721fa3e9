"""Tables with rows sharded over the processes of a job, one contiguous shard each."""

from seqrec.catalogue.sharding.clipping import clip_norm, total_norm
from seqrec.catalogue.sharding.embedding import ShardedEmbedding
from seqrec.catalogue.sharding.exchange import RowShards
from seqrec.catalogue.sharding.optimizer_state import PLACES, keep_own_state, save_whole_state

__all__ = ["PLACES", "RowShards", "ShardedEmbedding", "clip_norm", "keep_own_state", "save_whole_state", "total_norm"]
