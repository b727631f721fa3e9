"""Lightning callbacks that make a run repeatable and resumable, and measure it."""

from seqrec.callbacks.best_checkpoint import BestCheckpoint
from seqrec.callbacks.checkpoint_files import CheckpointFiles
from seqrec.callbacks.early_stopping import EarlyStopping
from seqrec.callbacks.execution import Execution
from seqrec.callbacks.finite_loss import FiniteLoss
from seqrec.callbacks.gradient_norm import GradientNorm
from seqrec.callbacks.resume_points import ResumePoints
from seqrec.callbacks.run_monitor import RunMonitor
from seqrec.callbacks.run_summary import RunSummary
from seqrec.callbacks.step_seeds import StepSeeds

__all__ = [
    "BestCheckpoint",
    "CheckpointFiles",
    "EarlyStopping",
    "Execution",
    "FiniteLoss",
    "GradientNorm",
    "ResumePoints",
    "RunMonitor",
    "RunSummary",
    "StepSeeds",
]
