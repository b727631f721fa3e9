"""How the best items of a catalogue are found."""

from seqrec.search.base import ExactSearch, ItemSearch
from seqrec.search.faiss_search import FaissSearch

__all__ = ["ExactSearch", "FaissSearch", "ItemSearch"]
