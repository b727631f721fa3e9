"""Recommenders as files that onnxruntime and plain torch run."""

from seqrec.inference.export.formats import ExportError
from seqrec.inference.export.model import export_model

__all__ = ["ExportError", "export_model"]
