"""Many runs of one config with other parameters, chosen by Optuna."""

from seqrec.experiments.sweep.settings import SweepSettings
from seqrec.experiments.sweep.study import TrialReporter
from seqrec.experiments.sweep.trials import run_sweep

__all__ = ["SweepSettings", "TrialReporter", "run_sweep"]
