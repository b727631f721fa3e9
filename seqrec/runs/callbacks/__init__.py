"""Lightning callbacks that make a run repeatable and resumable, and measure it."""

from seqrec.aliases import old_names
from seqrec.runs.callbacks.best_checkpoint import BestCheckpoint
from seqrec.runs.callbacks.early_stopping import EarlyStopping
from seqrec.runs.callbacks.execution import EncoderCompile
from seqrec.runs.callbacks.finite_loss import FiniteLoss
from seqrec.runs.callbacks.gradient_norm import GradientNorm
from seqrec.runs.callbacks.resume_points import ResumePoints
from seqrec.runs.callbacks.run_monitor import RunMonitor
from seqrec.runs.callbacks.run_summary import RunSummary
from seqrec.runs.callbacks.step_seeds import StepSeeds
from seqrec.runs.checkpoints import UseAtomicCheckpoints

__all__ = [
    "BestCheckpoint",
    "UseAtomicCheckpoints",
    "EarlyStopping",
    "EncoderCompile",
    "FiniteLoss",
    "GradientNorm",
    "ResumePoints",
    "RunMonitor",
    "RunSummary",
    "StepSeeds",
]

__getattr__ = old_names(__name__)
