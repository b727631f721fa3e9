"""Many runs of one config with other parameters, chosen by Optuna."""

from seqrec.sweep.reporter import TrialReporter
from seqrec.sweep.settings import SweepSettings
from seqrec.sweep.trials import run_sweep

__all__ = ["SweepSettings", "TrialReporter", "run_sweep"]
