"""Lightning callbacks that make a run repeatable and resumable, and monitor it."""

from seqrec.aliases import old_names
from seqrec.runs.callbacks.encoder_compile import EncoderCompile
from seqrec.runs.callbacks.finite_loss import FiniteLoss
from seqrec.runs.callbacks.gather_tables import GatherTables
from seqrec.runs.callbacks.graphed_step import GraphedStep
from seqrec.runs.callbacks.model_selection import BestCheckpoint, ResumableEarlyStopping
from seqrec.runs.callbacks.monitoring import GradientNorm, RunMonitor
from seqrec.runs.callbacks.progress_lines import ProgressLines
from seqrec.runs.callbacks.resume_points import ResumePoints
from seqrec.runs.callbacks.run_summary import RunSummary
from seqrec.runs.callbacks.step_seeds import StepSeeds
from seqrec.runs.callbacks.validation_steps import ValidationSteps
from seqrec.runs.checkpoints import UseAtomicCheckpoints

__all__ = [
    "BestCheckpoint",
    "ResumableEarlyStopping",
    "EncoderCompile",
    "FiniteLoss",
    "GatherTables",
    "GradientNorm",
    "GraphedStep",
    "ProgressLines",
    "ResumePoints",
    "RunMonitor",
    "RunSummary",
    "StepSeeds",
    "UseAtomicCheckpoints",
    "ValidationSteps",
]

__getattr__ = old_names(__name__)
