"""`seqrec benchmark paper`: every encoder at every history length, by one protocol and one budget."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from seqrec.config_files import CONFIGS
from seqrec.data.progress import Progress, print_line
from seqrec.experiments.grid import Budget, Settings, run_grid
from seqrec.experiments.grid.cells import ENCODERS, plan
from seqrec.experiments.grid.runner import make_slots

# Models that count, unless told others.
BASELINES = ("Popularity",)


def benchmark_paper(
    data: Sequence[str],
    lengths: Sequence[int],
    *,
    encoders: Sequence[str] = ENCODERS,
    baselines: Sequence[str] = BASELINES,
    ablations: Sequence[str] = (),
    seeds: int = 3,
    budget: str = "epochs=8",
    study: str = "small",
    set: Sequence[str] = (),  # the word of the command line
    path: str | None = None,
    configs: str | None = None,
    folder: str = "paper",
    jobs: int = 1,
    device: str = "auto",
    keep_checkpoints: bool = False,
) -> None:
    """Train and test every encoder at every length with every seed; `seqrec report` makes tables of it.

    Each cell is a `seqrec fit` in a process and folder of its own. The command may be stopped or killed at any time:
    the same one goes on and leaves out what is finished, and one with more lengths, seeds, encoders or logs adds to
    the folder. A cell that was stopped starts anew, so that its times are those of one whole run.

    Args:
        data: Names of fragments of the kind `data`; "+" joins several of one log, such as lfm1b_track+lfm1b_album.
        lengths: Events of a history, at most.
        encoders: Models that are trained, by their fragments of the kind `model`.
        baselines: Models that only count, likewise, run once.
        ablations: Fragments of the kind `ablation`; each is one more row of every encoder that has what it changes.
        seeds: Runs of each encoder, with the seeds 0, 1, ..
        budget: Training of each cell: epochs=N; seconds=N of wall-clock time; or convergence=N, until validation
            NDCG@10 has not risen for N epochs. The epoch that is best in validation is tested.
        study: Fragment of the kind `study`: what all rows share.
        set: More that all rows share, as arguments of `seqrec fit` without dashes, such as model.d_model=32.
        path: Where the log is, if its fragment should not say it.
        configs: Folder of the fragments; None is `configs/fragments` of the package.
        folder: Where everything goes.
        jobs: Cells at a time on a CPU, whose cores they share; on GPUs there is one for each that is visible.
        device: auto, cpu or cuda.
        keep_checkpoints: Whether the checkpoints of finished cells stay.

    Raises:
        InputError: an argument is out of range, or cells failed; the others are finished then.
    """
    settings = Settings(
        CONFIGS / "fragments" if configs is None else Path(configs),
        study,
        Budget.parse(budget),
        path,
        tuple(f"--{words}" for words in set),
    )
    cells = plan(
        settings,
        data=data,
        lengths=lengths,
        encoders=encoders,
        baselines=baselines,
        ablations=ablations,
        seeds=seeds,
    )
    slots = make_slots(jobs, device)
    models = {"encoders": encoders, "baselines": baselines, "ablations": ablations}
    rows = {"data": data, "lengths": lengths, **models, "seeds": [seeds]}
    run_grid(
        Path(folder),
        cells,
        settings,
        slots,
        made_by=_command(settings, rows),
        keep_checkpoints=keep_checkpoints,
        progress=Progress(print_line),
    )
    print(f"\n{folder}: results.parquet, curves.parquet, cells; tables and figures: seqrec report {folder}")


def _command(settings: Settings, rows: Mapping[str, Sequence[object]]) -> str:
    """The command that makes a grid, but for where things lie on this machine."""
    arguments = {
        **rows,
        "budget": [settings.budget],
        "study": [settings.study],
        "set": [words.removeprefix("--") for words in settings.overrides],
        "path": [] if settings.path is None else [Path(settings.path).name],
    }
    # What is taken where nothing is said; that there are no baselines must be said.
    usual = {"encoders": ENCODERS, "baselines": BASELINES}
    words = (
        " ".join([f"--{name}", *(shlex.quote(str(value)) for value in values)])
        for name, values in arguments.items()
        if tuple(values) != usual.get(name, ())
    )
    return " ".join(["seqrec benchmark paper", *words])
