"""Many runs: sweeps, grids, ladders, searches of step and batch sizes, reports; with the models to train, by name."""

from __future__ import annotations

from seqrec import encoders
from seqrec.models import Baseline, Recommender
from seqrec.registry import Registry

# Order of encoders in tables: by their papers. Encoders that are not listed follow.
_ORDER = ("GRU4Rec", "HRNN", "SASRec", "RecMamba", "MambaRec", "MoEMaTrRec", "Samba", "HSTU", "BERT4Rec", "SSD4Rec")
ENCODERS = tuple(sorted(encoders.ENCODERS, key=lambda name: (*_ORDER, name).index(name)))
MODELS: Registry[Recommender] = Registry("model", Recommender)  # type: ignore[type-abstract]


def is_baseline(model: str) -> bool:
    """Return whether a model of this name only counts, and is not trained."""
    return model in MODELS and issubclass(MODELS[model], Baseline)
