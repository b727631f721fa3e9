"""Refusals of the argument parser, said in one line."""

from __future__ import annotations


def explain(message: str) -> str:
    """One line from the parser's message."""
    return message
