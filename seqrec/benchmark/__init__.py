"""Measurements of the library next to a plain yardstick, taken in the same run. One file per benchmark."""
