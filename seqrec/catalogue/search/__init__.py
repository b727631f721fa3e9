"""How the best items of a catalogue are found."""

from seqrec.catalogue.search.base import ExactSearch, ItemSearch
from seqrec.catalogue.search.faiss_search import FaissSearch

__all__ = ["ExactSearch", "FaissSearch", "ItemSearch"]
