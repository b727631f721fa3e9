"""Commands without a trainer: inspect, doctor, compare, recommend, export, serve, sweep and benchmark."""

from __future__ import annotations

import inspect as inspect_module
import json as json_module
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Literal, NoReturn

import jsonargparse

from seqrec import __version__
from seqrec.benchmark.catalogue import benchmark_catalogue
from seqrec.benchmark.data import benchmark_data
from seqrec.benchmark.inference import benchmark_inference
from seqrec.benchmark.recall import benchmark_recall
from seqrec.benchmark.scan import benchmark_scan
from seqrec.benchmark.serve import benchmark_serve
from seqrec.benchmark.training import benchmark_training
from seqrec.cli.doctor import examine
from seqrec.cli.errors import explain
from seqrec.data.inspect import describe, report_text
from seqrec.data.store import EventStore
from seqrec.evaluation.results import compare as compare_runs
from seqrec.evaluation.results import comparison_text, read_results
from seqrec.evaluation.results.comparison import METRICS
from seqrec.experiments.paper import benchmark_paper
from seqrec.experiments.report import report
from seqrec.experiments.sweep import SweepSettings, run_sweep
from seqrec.inference import load
from seqrec.inference.bulk.command import recommend
from seqrec.inference.export import export as export_programs
from seqrec.inference.export.manifest import FILE_NAME as MANIFEST
from seqrec.serving import Limits
from seqrec.serving.command import serve
from seqrec.specs import from_spec


class ArgumentParser(jsonargparse.ArgumentParser):
    """Parser that refuses in one line, with what is allowed."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the reason and exit with status 2."""
        sys.stderr.write(f"error: {explain(message, self, ex)}\n")
        raise SystemExit(2)


def inspect(store: str, *, verify: bool = True, json: bool = False) -> None:
    """Show what an event store holds, and check that it is intact.

    Args:
        store: Folder of the store.
        verify: Whether every file is hashed, which takes as long as reading them.
        json: Whether to print JSON for programs.

    Raises:
        StoreError: there is no store in the folder.
    """
    report = describe(EventStore.open(store), verify=verify)
    print(report.as_json() if json else report_text(report))
    if report.damage is not None:
        raise SystemExit(1)


def doctor(*, json: bool = False) -> None:
    """Show which backends of the fast paths this machine has, which are used, and why not the others.

    Args:
        json: Whether to print JSON for programs.
    """
    report = examine()
    print(report.as_json() if json else report.as_text())
    if not report.healthy:
        raise SystemExit(1)


def compare(
    runs: list[str],
    *,
    metrics: str = ",".join(METRICS),
    slices: bool = False,
    across_protocols: bool = False,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Compare tested runs with the first of them, user by user, with confidence intervals.

    Args:
        runs: Run folders or results files, one or more; the others are compared with the first.
        metrics: HR@K, MRR@K, NDCG@K, Recall@K or Precision@K, with commas between.
        slices: Whether to show slices by history length, popularity, repetition and time.
        across_protocols: Whether runs of different protocols may be compared.
        resamples: Resamples of users for intervals, and draws of the sign-flip test.
        confidence: Share of the resamples that intervals hold.
        seed: Seed of both.
        json: Whether to print JSON for programs.

    Raises:
        InputError: a run has no results, or the runs did not judge the same targets by the same protocol.
    """
    comparison = compare_runs(
        [read_results(run) for run in runs],
        metrics=[name.strip() for name in metrics.split(",") if name.strip()],
        slices=slices,
        across_protocols=across_protocols,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )
    print(comparison.as_json() if json else comparison_text(comparison))


def export(
    ckpt: str,
    output: str,
    *,
    format: Literal["onnx", "torch"] = "onnx",
    separate_table: bool | None = None,
    top_k: int = 0,
    store: str | None = None,
) -> None:
    """Write a checkpoint's model as programs that onnxruntime or plain torch run, each checked against the model.

    Args:
        ckpt: Checkpoint that `seqrec fit` wrote.
        output: Folder that is made; `manifest.json` there says what the programs take and return.
        format: "onnx", or "torch" for .pt2 files of torch.export.
        separate_table: Whether item and user vectors stay outside the programs, in .npy files that are mapped into
            memory; null: where a table has more than 64 MiB.
        top_k: Best items that the programs find themselves; 0 leaves that to the consumer.
        store: Folder of the event store that the model was trained on; null is where it was then.

    Raises:
        InputError: a model that cannot be exported, a missing package, or an argument that does not fit.
    """
    model = load(ckpt, store=store)
    said = export_programs(model, output, format=format, separate_table=separate_table, top_k=top_k)
    for name, program in said["programs"].items():
        if "omitted" in program:
            print(f"no {name}: {program['omitted']}")
        else:
            print(
                f"{output}/{program['file']}: differs from the model by {program['largest_difference']:.0e} at most"
            )
    print(f"{output}/{MANIFEST} says what they take and return")


COMMANDS: dict[str, Any] = {
    "inspect": inspect,
    "doctor": doctor,
    "compare": compare,
    "recommend": recommend,
    "export": export,
    "serve": serve,
    "report": report,
    "sweep": run_sweep,
    "benchmark": {
        "data": benchmark_data,
        "scan": benchmark_scan,
        "catalogue": benchmark_catalogue,
        "serve": benchmark_serve,
        "inference": benchmark_inference,
        "training": benchmark_training,
        "paper": benchmark_paper,
        "recall": benchmark_recall,
    },
}


def run_command(words: Sequence[str], main: Callable[[Sequence[str]], None]) -> None:
    """Run one of `COMMANDS`.

    Args:
        words: The command and its arguments.
        main: Runs the words of any command, for commands that start runs.
    """
    command, *arguments = words
    if command == "sweep":
        _run_sweep(arguments, main)
        return
    if command == "recommend":
        arguments = [_with_underscores(word) for word in arguments]
    if command == "compare":
        _run_compare(arguments)
        return
    if command == "serve":
        _run_serve(arguments)
        return
    jsonargparse.auto_cli(
        COMMANDS[command],
        args=with_lists(COMMANDS[command], arguments),
        prog=f"seqrec {command}",
        parser_class=ArgumentParser,
        version=__version__,
        allow_abbrev=False,
        as_positional=command in ("inspect", "report"),
    )


def with_lists(command: Any, words: Sequence[str]) -> list[str]:
    """Let lists stand without brackets, as in `--lengths 250 500 1000`, which the parser would not understand.

    Args:
        command: A function, or functions by the names of subcommands.
        words: The arguments, behind the name of a subcommand if there is one.

    Returns:
        The words, with each list of a function's `Sequence` argument as one JSON word.
    """
    if isinstance(command, dict):
        if not words or words[0] not in command:
            return list(words)
        return [words[0], *with_lists(command[words[0]], words[1:])]
    kinds = {
        f"--{name}": int if "int" in parameter.annotation else str
        for name, parameter in inspect_module.signature(command).parameters.items()
        if parameter.annotation.startswith("Sequence[")
    }
    found: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        found.append(word)
        if word not in kinds:
            continue
        values: list[Any] = []
        while waiting and not waiting[0].startswith("--"):
            values.append(waiting.pop(0))
        if len(values) == 1 and values[0].startswith("["):
            found += values
            continue
        number = kinds[word] is int and all(value.isdecimal() for value in values)
        found.append(json_module.dumps([int(value) for value in values] if number else values))
    return found


def _with_underscores(word: str) -> str:
    """`--top_k=5` for `--top-k=5`."""
    option, equals, value = word.partition("=")
    return option[:2] + option[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _run_compare(arguments: Sequence[str]) -> None:
    # `auto_cli` takes a list as one word; runs stand one behind the other.
    parser = ArgumentParser(prog="seqrec compare", version=__version__, allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="+", type=str, help="run folders or results files; the first is the baseline"
    )
    parser.add_function_arguments(compare, skip={"runs"})
    compare(**parser.parse_args(arguments).as_dict())


def _run_serve(arguments: Sequence[str]) -> None:
    # `auto_cli` takes the checkpoint without its name, and limits as `--limits.max_k`.
    parser = ArgumentParser(prog="seqrec serve", version=__version__, allow_abbrev=False)
    parser.description = (
        "Serve recommendations and take in events over HTTP, until the process is told to stop."
    )
    parser.add_function_arguments(serve, skip={"limits"}, as_group=False)
    parser.add_class_arguments(Limits, None, as_group=False)
    values = parser.parse_args(arguments).as_dict()
    limits = Limits(**{each.name: values.pop(each.name) for each in fields(Limits)})
    # Not by the parser, which hides why none of several classes could be built.
    serve(**values | {"sessions": from_spec(values["sessions"])}, limits=limits)


def _run_sweep(arguments: Sequence[str], main: Callable[[Sequence[str]], None]) -> None:
    parser = ArgumentParser(
        prog="seqrec sweep",
        description="Runs of one config with other parameters, chosen by Optuna; started again it goes on.",
        version=__version__,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML with the arguments")
    parser.add_class_arguments(SweepSettings)
    given = parser.parse_args(arguments).as_dict()
    given.pop("config")
    print(run_sweep(SweepSettings(**given), main))
