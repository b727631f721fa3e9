"""`seqrec sweep`."""

from seqrec.cli import main
from seqrec.experiments.sweep import SweepSettings, run_sweep


def sweep(settings: SweepSettings) -> None:
    """Run one config with other parameters, which Optuna chooses. Start the command again to resume it.

    Args:
        settings: See the class.
    """
    run_sweep(settings, main)
