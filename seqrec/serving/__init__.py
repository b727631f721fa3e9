"""Recommendations over HTTP. `seqrec.serving.app.create_app` makes the application, which needs `seqrec[serve]`."""

from seqrec.serving.limits import Limits

__all__ = ["Limits"]
