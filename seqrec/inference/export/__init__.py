"""Recommenders as files that onnxruntime and plain torch run."""

from seqrec.inference.export.checks import ExportError
from seqrec.inference.export.model import export_model

__all__ = ["ExportError", "export_model"]
