"""`seqrec benchmark paper`: every encoder at every history length, by one protocol and one budget."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from seqrec.data.output import show
from seqrec.data.progress import STATUS, Progress
from seqrec.experiments import ENCODERS
from seqrec.experiments.grid import Budget, Settings, run_grid
from seqrec.experiments.grid.cells import plan
from seqrec.experiments.grid.result import RESULTS_FOLDER
from seqrec.experiments.runner import make_slots
from seqrec.runs.config_files import CONFIGS

# Default models that count.
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
    tune: Sequence[str] = (),
    path: str | None = None,
    configs: str | None = None,
    folder: str = "paper",
    results: str | None = None,
    jobs: int = 1,
    device: str = "auto",
    keep_checkpoints: bool = False,
) -> None:
    """Train and test every encoder at every length with every seed; `seqrec report` makes tables of the results.

    Each cell is a `seqrec fit` in a process and folder of its own. The command may be stopped or killed at any time:
    started again, with another number of jobs or on another machine that has the results, it leaves out finished cells.
    Several commands may work on one grid at a time. One with more lengths, seeds, encoders or logs adds to the results.
    A cell that was stopped starts anew: its times are those of one complete run.

    Args:
        data: Names of fragments of the kind `data`; "+" joins several of one log, such as lfm1b_track+lfm1b_album.
        lengths: Most events of a history.
        encoders: Models to train, by their fragments of the kind `model`.
        baselines: Models that only count, likewise, run once.
        ablations: Fragments of the kind `ablation`; each is one more row of every encoder that has its arguments.
        seeds: Runs of each encoder, with the seeds 0, 1, ..
        budget: Training of each cell: epochs=N; steps=N updates; seconds=N of wall-clock time; or convergence=N, until
            validation NDCG@10 has not risen for N epochs. "steps=20000,patience=1600,every=200" validates after every
            200 updates, and ends if validation has not risen for 1,600. The best validation is tested.
        study: Fragment of the kind `study`: settings that all rows share.
        set: Further settings of all rows, as arguments of `seqrec fit` without dashes, such as model.d_model=32.
        tune: Arguments of `set` with values to try, such as model.optimizer.lr=.0003,.001 model.dropout=.1,.3. Each
            encoder is trained with every combination, at the shortest length with seed 0, and its cells take the
            values with the best validation.
        path: File or folder of the log, if its fragment does not contain it.
        configs: Folder of the fragments; None is `fragments` among the package's configs.
        folder: Folder of the runs, which may be deleted when the command has ended.
        results: Folder of the results, a small JSON file for each cell; None is `results` in `folder`.
        jobs: Cells at a time on a CPU, which share its cores. On GPUs, one cell runs per visible GPU.
        device: auto, cpu or cuda.
        keep_checkpoints: Whether the checkpoints of finished cells stay.

    Raises:
        InputError: if an argument is out of range, a cell of other settings has a result, or cells fail; the others are
            finished then.
    """
    fragments = CONFIGS / "fragments" if configs is None else Path(configs)
    settings = Settings(fragments, study, Budget.parse(budget), path, tuple(set))
    models = {"encoders": encoders, "baselines": baselines, "ablations": ablations}
    cells = plan(settings, data=data, lengths=lengths, **models, seeds=seeds, tune=tune)
    slots, progress = make_slots(jobs, device), Progress(STATUS)
    made_by = _command(settings, {"data": data, "lengths": lengths, **models, "seeds": [seeds], "tune": tune})
    kept = Path(folder, RESULTS_FOLDER) if results is None else Path(results)
    run_grid(Path(folder), kept, cells, settings, slots, progress, made_by, keep_checkpoints=keep_checkpoints)
    line = f"{kept}: a JSON file for each cell; tables and figures: seqrec report {kept}"
    show("", line, results=str(kept), cells=[str(cell) for cell in cells])


def _command(settings: Settings, rows: Mapping[str, Sequence[object]]) -> str:
    """Return the command that makes a grid, without folders of this machine."""
    arguments = {
        **rows,
        "budget": [settings.budget],
        "study": [settings.study],
        "set": settings.overrides,
        "path": [] if settings.path is None else [Path(settings.path).name],
    }
    # Defaults are left out. Empty baselines are no default.
    usual = {"encoders": ENCODERS, "baselines": BASELINES}
    words = (
        " ".join([f"--{name}", *(shlex.quote(str(value)) for value in values)])
        for name, values in arguments.items()
        if tuple(values) != usual.get(name, ())
    )
    return " ".join(["seqrec benchmark paper", *words])
