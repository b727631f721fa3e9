"""Train, compare and serve sequential recommenders on long histories."""

__version__ = "0.1.0"
