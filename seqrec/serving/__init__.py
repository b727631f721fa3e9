"""Recommendations over HTTP. `seqrec.serving.app.create_app` returns the application; needs `seqrec[serve]`."""

from seqrec.serving.limits import Limits

__all__ = ["Limits"]
