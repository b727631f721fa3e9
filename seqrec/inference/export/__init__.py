"""Export of recommenders as files that onnxruntime and plain torch run."""

from seqrec.aliases import old_names
from seqrec.inference.export.formats import ExportError
from seqrec.inference.export.manifest import verify_export
from seqrec.inference.export.model import export

__all__ = ["ExportError", "export", "verify_export"]

__getattr__ = old_names(__name__)
