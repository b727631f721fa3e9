"""Lightning callbacks that make a run repeatable and resumable."""

from seqrec.callbacks.best_checkpoint import BestCheckpoint
from seqrec.callbacks.early_stopping import EarlyStopping
from seqrec.callbacks.finite_loss import FiniteLoss
from seqrec.callbacks.resume_points import ResumePoints
from seqrec.callbacks.step_seeds import StepSeeds

__all__ = ["BestCheckpoint", "EarlyStopping", "FiniteLoss", "ResumePoints", "StepSeeds"]
