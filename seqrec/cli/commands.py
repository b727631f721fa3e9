"""The table of commands, and the commands that need only a few lines.

Functions here import what they need when they run. None has a name of `seqrec.__all__`: the parser looks up the name of
each function there, which would load a public name.
"""

from __future__ import annotations

import itertools
import pkgutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from seqrec.aliases import __version__
from seqrec.cli.arguments import asks_for_a_trainer, expand
from seqrec.cli.help import overview
from seqrec.cli.parsing import call, with_underscores, without_output_options
from seqrec.cli.trust import classes_of_the_user, trust_of
from seqrec.data.output import command_output, show
from seqrec.data.report_table import report_table
from seqrec.errors import InputError
from seqrec.registry import did_you_mean
from seqrec.runs.config_files import config_summaries, find_config


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        summary: One line for `seqrec --help`.
        function: `module:name` of a function; its arguments are the command's options. None if the command is a method
            of `seqrec.cli.lightning_cli.Trainer`, with the options of a run.
        positional: The argument that may be given without its name.
        note: Last line of its help.
        shows: Whether it has a result, which `--json` and `--table` give to programs.
    """

    summary: str
    function: str | None = None
    positional: str | None = None
    note: str | None = None
    shows: bool = True


_RECOMMEND = "seqrec.inference.bulk.command:recommend"
_BY_TRAINER = "With options of a run (--config, --trainer.devices 2, ..) a trainer recommends: see --trainer.help."
_BENCHMARKS = {
    "data": "preparation and loading of a generated log",
    "catalogue": "time and memory of a training step by catalogue size",
    "scan": "all backends of the selective scan",
    "training": "a training step in several precisions",
    "columns": "what times and columns of events cost",
    "inference": "one further event, and the throughput of sessions",
    "bulk": "lists for many users of a large catalogue",
    "serve": "a server with many clients",
    "recall": "which encoder finds a signal that lies far back",
}
COMMANDS = {
    "prepare": Command("prepare the event store from the raw log, and summarise it"),
    "append": Command("add new events to the prepared store"),
    "compact": Command("rewrite a store that has grown as one segment"),
    "fit": Command("prepare, train, and test the best checkpoint"),
    "validate": Command("compute the validation metrics of a checkpoint"),
    "test": Command("compute the test metrics of a checkpoint"),
    "tune": Command("find a step size, or the largest batch that fits", positional="what"),
    "recommend": Command("write the best items for every user, as Parquet", _RECOMMEND, note=_BY_TRAINER),
    "predict": Command("the same as recommend", _RECOMMEND, note=_BY_TRAINER),
    "serve": Command("serve recommendations over HTTP", "seqrec.serving.command:serve", shows=False),
    "export": Command("write ONNX or .pt2 files that need no seqrec", f"{__name__}:export_checkpoint"),
    "sweep": Command("search parameters of a config with Optuna", "seqrec.cli.sweep:sweep"),
    "backtest": Command(
        "judge a model day by day as its training continues", "seqrec.experiments.backtest:backtest", "configs"
    ),
    "compare": Command("compare runs on the same users", f"{__name__}:compare_runs", "runs"),
    "configs": Command("list the configs of the package, or print one", f"{__name__}:configs", "name"),
    "inspect": Command("show the contents of an event store", f"{__name__}:inspect", "store"),
    "doctor": Command("list the fast paths of this machine", f"{__name__}:doctor"),
    "report": Command("write the page of a run, or tables of a grid", "seqrec.experiments.report:report", "folder"),
    "benchmark paper": Command("a grid: every encoder at every length", "seqrec.experiments.paper:benchmark_paper"),
    "benchmark ladder": Command("one model, step by step", "seqrec.experiments.ladder:benchmark_ladder", "ladder"),
    **{
        f"benchmark {name}": Command(line, f"seqrec.benchmark.{name}:benchmark_{name}")
        for name, line in _BENCHMARKS.items()
    },
}
# First words of commands of two words.
GROUPS = {name.partition(" ")[0] for name in COMMANDS if " " in name}


def run_command(words: Sequence[str]) -> None:
    """Run a command, which is the first of words; only its parser is built, and only its modules are imported."""
    if words and words[0] == "--version":
        print(f"seqrec {__version__}")
        return
    group = words[0] if words and words[0] in GROUPS else ""
    if not words or words[1 if group else 0 :][:1] in (["--help"], ["-h"]):
        print(overview({name: each.summary for name, each in COMMANDS.items()}, group))
        raise SystemExit(0 if words else 2)
    with trust_of(with_underscores(words)) as arguments:
        _run(arguments)


def _run(words: list[str]) -> None:
    words, as_json, files = without_output_options(words)
    if not words or words[0].startswith("-"):
        # Lightning accepts a config of several commands in front of the command.
        name, command, arguments = None, Command(""), words
    else:
        name = command_named(words)
        command, arguments = COMMANDS[name], words[len(name.split()) :]
    for word, value in itertools.pairwise([*arguments, "-"]):
        # The folder of runs of one kind may have an empty name.
        if word.startswith("--") and (word.endswith("=") or not value) and not word.rstrip("=").endswith(".name"):
            raise InputError(f"{word.rstrip('=')} has an empty value: give one, or leave it out")
    if (as_json or files) and not command.shows:
        raise InputError(f"seqrec {name} has no result: leave --json and --table out")
    named = name or next((word for word in words if word in COMMANDS), "run")
    with command_output("recommend" if named == "predict" else named, as_json=as_json, files=files):
        _call(name, command, arguments)


def _call(name: str | None, command: Command, arguments: list[str]) -> None:
    by_trainer = name in ("recommend", "predict") and asks_for_a_trainer(arguments)
    if name is None or command.function is None or by_trainer:
        from seqrec.cli.lightning_cli import run

        run("predict" if name == "recommend" else name, arguments, command.summary, command.positional)
    else:
        function = pkgutil.resolve_name(command.function)
        argv = expand(name, arguments, checkpoint="--ckpt")
        as_typed = "--ckpt_path" if any(word.startswith("--ckpt_path") for word in arguments) else "--ckpt"
        about: dict[str, Any] = {"positional": command.positional, "note": command.note, "shows": command.shows}
        with classes_of_the_user():
            call(name, function, argv, as_typed=as_typed, **about)


def command_named(words: Sequence[str]) -> str:
    """Return the name of the command at the start of words.

    Raises:
        InputError: if no command has that name; the message contains the nearest.

    Example:
        >>> command_named(["benchmark", "data", "--events", "1M"])
        'benchmark data'
    """
    count = 2 if words[0] in GROUPS else 1
    name = " ".join(words[:count])
    if name not in COMMANDS:
        known = [each for each in COMMANDS if count == 1 or each.startswith(f"{words[0]} ")]
        raise InputError(f"unknown command {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}")
    return name


def inspect(store: str, *, verify: bool = True) -> None:
    """Show the contents of an event store, and check that it is intact.

    Args:
        store: Folder of the store.
        verify: Whether to hash every file, which takes as long as reading them.

    Raises:
        StoreError: if the folder contains no store.
    """
    from seqrec.data.inspect import describe, report_text
    from seqrec.data.progress import STATUS, Progress
    from seqrec.data.store import EventStore

    # The report of a damaged store shows what its manifest has.
    report = describe(EventStore.open_unchecked(store), verify=verify, progress=Progress(STATUS))
    show(report_text(report), **asdict(report))
    if report.damage is not None:
        raise SystemExit(1)


def doctor() -> None:
    """List the backends of the fast paths on this machine, those in use, and why the others are not."""
    from seqrec.cli.doctor import examine

    report = examine()
    show(report.as_text(), **asdict(report))
    if not report.healthy:
        raise SystemExit(1)


def configs(name: str | None = None) -> None:
    """List the configs of the package, or print one.

    Args:
        name: Name of the config to print, such as `quickstart` or `trainer/ddp`. None lists all.

    Raises:
        MissingInputError: if no config has that name.
    """
    if name is not None:
        text = find_config(name).read_text(encoding="utf-8")
        show(text.removesuffix("\n"), name=name, text=text)
        return
    rows = list(config_summaries())
    table = report_table(["config", "about"], rows, words=2)
    show(table, configs=[{"name": each, "about": line} for each, line in rows])


def compare_runs(
    runs: list[str],
    *,
    metrics: str = "HR@10,NDCG@10,MRR@10",
    slices: bool = False,
    across_protocols: bool = False,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> None:
    """Compare tested runs with the first of them, user by user, with confidence intervals.

    Args:
        runs: Run folders or results files, one or more. The others are compared with the first.
        metrics: HR@K, MRR@K, NDCG@K, Recall@K or Precision@K, separated by commas.
        slices: Whether to show slices by history length, popularity, repetition and time.
        across_protocols: Whether runs with different protocols may be compared.
        resamples: Number of resamples of users for the intervals, and of draws of the sign-flip test.
        confidence: Share of the resamples that an interval contains.
        seed: Seed of both.

    Raises:
        InputError: if a run has no results, or the runs were not evaluated on the same targets by the same protocol.
    """
    from seqrec.data.progress import STATUS, Progress
    from seqrec.evaluation.results import compare, read_results
    from seqrec.evaluation.results.comparison import comparison_parts

    comparison = compare(
        [read_results(run) for run in runs],
        metrics=[name.strip() for name in metrics.split(",") if name.strip()],
        slices=slices,
        across_protocols=across_protocols,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
        progress=Progress(STATUS),
    )
    show(*comparison_parts(comparison), **asdict(comparison))


def export_checkpoint(
    ckpt: str | None = None,
    output: str | None = None,
    *,
    verify: str | None = None,
    format: Literal["onnx", "torch"] = "onnx",
    separate_table: bool | None = None,
    top_k: int = 0,
    store: str | None = None,
) -> None:
    """Write a checkpoint's model as programs for onnxruntime or plain torch, each checked against the model.

    Args:
        ckpt: A checkpoint, a run folder, a folder of runs, or `last`.
        output: New folder. Its `manifest.json` describes the inputs and outputs of the programs.
        format: "onnx", or "torch" for .pt2 files of torch.export.
        separate_table: Whether item and user vectors stay outside the programs, in .npy files that are memory-mapped.
            null: only if a table has more than 64 MiB.
        top_k: Number of best items that the programs find themselves. 0: the programs return all scores.
        store: Folder of the event store that the model was trained on; null is the folder recorded in the checkpoint.
        verify: Folder of an export: compare its files with what was written, instead of exporting.

    Raises:
        InputError: if the model cannot be exported, a package is missing, or an argument does not fit.
    """
    if verify is not None and (ckpt, output) != (None, None):
        raise InputError("--verify compares an export that is there, and --ckpt and --output write one: leave one out")
    if verify is not None:
        from seqrec.inference.export.manifest import verify_export

        damage = verify_export(verify)
        show("\n".join(damage) or f"{verify} is as it was written", folder=verify, damage=damage)
        raise SystemExit(1 if damage else 0)
    for name, value in (("ckpt", ckpt), ("output", output)):
        if value is None:
            raise InputError(f"the argument '{name}' is required: give --{name}, or --verify FOLDER of an export")
    assert ckpt is not None
    assert output is not None
    from seqrec.data.progress import STATUS, Progress
    from seqrec.inference import load
    from seqrec.inference.export import export
    from seqrec.inference.export.manifest import FILE_NAME

    model = load(ckpt, store=store)
    manifest = export(
        model, output, format=format, separate_table=separate_table, top_k=top_k, progress=Progress(STATUS)
    )
    lines = [
        f"no {name}: {program['omitted']}"
        if "omitted" in program
        else f"{output}/{program['file']}: differs from the model by {program['largest_difference']:.0e} at most"
        for name, program in manifest["programs"].items()
    ]
    show(*lines, f"{output}/{FILE_NAME} describes their inputs and outputs", folder=output, manifest=manifest)
