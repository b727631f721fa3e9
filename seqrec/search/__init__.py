"""How the best items of a catalogue are found."""

from seqrec.search.base import ExactSearch, ItemSearch

__all__ = ["ExactSearch", "ItemSearch"]
