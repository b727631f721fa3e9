"""Measurements: what the library does, beside a plain yardstick, in one run. One module a benchmark.

Memory is read from `/proc`, so these run on Linux.
"""
