"""Checks for parts that others write, such as an encoder of one's own."""

from seqrec.encoders.contract import check_encoder

__all__ = ["check_encoder"]
