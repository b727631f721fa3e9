"""The commands with the options of a run: those of the data, tune, fit, validate, test, recommend with a trainer."""

# Longer than 400 lines because Lightning takes the commands and their options from one class.

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Checkpoint, ProgressBar, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from seqrec.aliases import __version__
from seqrec.cli import trainer_arguments
from seqrec.cli.arguments import (
    WARM_START,
    as_prediction,
    expand,
    refuse_missing_config,
    refuse_slurm_without_srun,
    refuse_unused_batch_size,
    sets,
    with_default_classes,
)
from seqrec.cli.parsing import ArgumentParser, with_names
from seqrec.cli.recipe_arguments import chosen_arguments
from seqrec.cli.run_parser import RunParser, build_data
from seqrec.cli.saved_config import SavedConfig
from seqrec.cli.trust import Check, classes_of_the_user, name_a_config, only_trusted_classes
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.output import show
from seqrec.data.prepare import compact
from seqrec.data.progress import STATUS
from seqrec.data.store import EventStore
from seqrec.evaluation.exposures import ExposureReport
from seqrec.evaluation.list_report import ListReport
from seqrec.evaluation.protocols import FullRanking, Protocol
from seqrec.evaluation.report import note_on_repeats, report_parts, write_metrics
from seqrec.evaluation.results import ResultsWriter
from seqrec.evaluation.results.file import FILE_NAME as RESULTS_FILE
from seqrec.experiments.sweep import TrialReporter
from seqrec.experiments.tuning import find_batch_size, find_lr
from seqrec.inference import RecommendationWriter
from seqrec.models import Baseline, Recommender, SequentialRecommender, WarmStart
from seqrec.models.baselines.comparison import BaselineComparison
from seqrec.registry import class_named
from seqrec.runs import RunFolder
from seqrec.runs.callbacks import (
    BestCheckpoint,
    EncoderCompile,
    GradientNorm,
    GraphedStep,
    ProgressLines,
    ResumableEarlyStopping,
    ResumePoints,
    RunMonitor,
    RunSummary,
    ValidationSteps,
)
from seqrec.runs.summary import FILE_NAME as SUMMARY_FILE
from seqrec.runs.trainer_checks import caveats

# Commands that need only the data -> their options.
OF_THE_DATA = {
    "prepare": ("overwrite",),
    "append": ("input", "duplicates", "late", "items", "users", "changed"),
    "compact": (),
}
CALLBACKS: dict[str, type[pl.Callback]] = {
    "checkpoint": BestCheckpoint,
    "validation": ValidationSteps,
    "early_stopping": ResumableEarlyStopping,
    "resume_points": ResumePoints,
    "execution": EncoderCompile,
    "graphed_step": GraphedStep,
    "warm_start": WarmStart,
    "recommendations": RecommendationWriter,
    "results": ResultsWriter,
    "baselines": BaselineComparison,
    "lists": ListReport,
    "exposures": ExposureReport,
}


class Trainer(pl.Trainer):
    """Lightning's trainer with two more methods, which are commands with the configs of the others."""

    @staticmethod
    def prepare(
        datamodule: SequenceDataModule,
        overwrite: bool = False,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Prepare the event store from the raw log, and summarise it.

        Args:
            datamodule: The log and the folder of the store.
            overwrite: Whether to replace a store that exists.
            ckpt_path: A run's folder, a checkpoint or `last`: the data of that run is prepared.
            weights_only: Unused; the config of a run has it.
        """
        if overwrite:
            datamodule.prepare_again()
        _show_store(datamodule.store)

    @staticmethod
    def append(
        datamodule: SequenceDataModule,
        input: list[str],
        duplicates: Literal["keep", "drop", "refuse"] | None = None,
        late: Literal["merge", "refuse"] = "merge",
        items: str | dict[str, Any] | None = None,
        users: str | dict[str, Any] | None = None,
        changed: Literal["refuse", "keep"] = "refuse",
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Add new events to the prepared store, as a segment of it.

        Args:
            datamodule: The log and the folder of the store.
            input: Files with new events, with the columns of the log: paths, globs or folders.
            duplicates: Events with the user, item and timestamp of an earlier one: keep, drop or refuse. null is
                data.filters.duplicates.
            late: Events that are older than the newest of their user in the store: merge or refuse.
            items: Table with the rows of new items, a path or `path` and `vectors`. null reads data.source.items.
            users: Table with the rows of new users, likewise.
            changed: Other values of known items and users in these tables: refuse, or keep those of the store.
            ckpt_path: A run's folder, a checkpoint or `last`: the data of that run grows.
            weights_only: Unused; the config of a run has it.
        """
        datamodule.append(input, duplicates=duplicates, late=late, items=items, users=users, changed=changed)
        _show_store(datamodule.store)

    @staticmethod
    def compact(datamodule: SequenceDataModule, ckpt_path: str | None = None, weights_only: bool | None = None) -> None:
        """Rewrite a store that has grown as one segment, with the same ids.

        Args:
            datamodule: The log and the folder of the store.
            ckpt_path: A run's folder, a checkpoint or `last`: the store of that run is rewritten.
            weights_only: Unused; the config of a run has it.
        """
        _show_store(compact(datamodule.store_directory, progress=STATUS))

    def tune(
        self,
        what: Literal["lr", "batch_size"],
        model: SequentialRecommender,
        datamodule: SequenceDataModule,
        min_lr: float = 1e-5,
        max_lr: float = 1.0,
        steps: int = 150,
        max_batch_size: int = 8192,
    ) -> None:
        """Find a step size, or the largest batch that fits into memory, and print it.

        Args:
            what: lr or batch_size.
            model: The model to train; its weights are restored.
            datamodule: Its data.
            min_lr: First step size to try.
            max_lr: Last step size to try.
            steps: Number of batches to try step sizes on.
            max_batch_size: Largest batch to try.
        """
        if what == "lr":
            found = find_lr(self, model, datamodule, min_lr=min_lr, max_lr=max_lr, steps=steps)
            name = type(model.optimizer).__name__
            line = f"suggested: --model.optimizer {name} --model.optimizer.lr {found.suggestion:.2g}"
            rank_zero_only(show)(line, optimizer=name, lr=found.suggestion, lrs=found.lrs, losses=found.losses)
        else:
            size = find_batch_size(self, model, datamodule, max_batch_size=max_batch_size)
            line = f"largest that was tried and fits: --data.batch_size {size}"
            rank_zero_only(show)(line, batch_size=size)


class SeqrecCLI(LightningCLI):
    """Lightning's command line with the callbacks, links and reports of a recommender's run.

    Args:
        command: The command to build the parser of; None builds those of all commands, which takes longer.
        check: Checks the parsed config; see `seqrec.cli.trust`.
        given: The arguments that users and configs give, without those that we add.
        **settings: Arguments of `LightningCLI`.
    """

    def __init__(self, command: str | None, check: Check, given: Sequence[str] = (), **settings: Any) -> None:
        self.command = command
        self.check = check
        self.given = given
        super().__init__(**settings)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser without abbreviations, which would accept misspelt arguments."""
        return super().init_parser(**{"allow_abbrev": False} | kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the protocol, the callbacks and the links from data to model."""
        parser.add_subclass_arguments(Protocol, "protocol", required=False)
        help_of_fresh = "whether test, validate and predict may use a model that is not trained"
        parser.add_argument("--fresh_weights", type=bool, default=False, help=help_of_fresh)
        help_of_recipe = "whether fit chooses what nothing sets by the size and shape of the log"
        parser.add_argument("--recipe", type=bool, default=True, help=help_of_recipe)
        for key, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.set_defaults(
            {
                "protocol": {"class_path": "seqrec.FullRanking"},
                "checkpoint.filename": "best",
                **dict.fromkeys(("checkpoint.monitor", "early_stopping.monitor"), "val_NDCG@10"),
                **dict.fromkeys(("checkpoint.mode", "early_stopping.mode"), "auto"),
                "checkpoint.enable_version_counter": False,
                "early_stopping.patience": 5,
                "graphed_step.enabled": False,
            }
        )
        parser.link_arguments("data.max_length", "model.init_args.max_length")
        given = {name: name for name in ("num_items", "num_users", "item_columns")}
        for name, argument in {**given, "event_columns": "log_columns", "user_columns": "log_user_columns"}.items():
            parser.link_arguments(f"data.{name}", f"model.init_args.{argument}", apply_on="instantiate")

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method of all commands
        """Return the trainer's methods that are commands, with the arguments that are not options."""
        every = {
            **{name: {"datamodule"} for name in OF_THE_DATA},
            "tune": {"model", "datamodule"},
            **LightningCLI.subcommands(),
        }
        return every if self.command is None else {self.command: every[self.command]}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        assert isinstance(parser, RunParser)
        parser.add_long_help(subcommand)
        return parser

    def _parse_ckpt_path(self) -> None:
        """Do nothing: the config of the run has the model's arguments, and Lightning checks the weights."""

    def _set_seed(self) -> None:
        trainer_arguments.check_seed(self._get(self.config, "seed_everything"))
        super()._set_seed()

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; the commands of the data build only these."""
        command, config = str(self.subcommand), self.config[self.subcommand].as_dict()
        self.check(config)
        if command in OF_THE_DATA:
            self.datamodule = build_data(self._get(self.config, "data"))
            return
        refuse_slurm_without_srun(self._get(self.config, "trainer.plugins"))
        trainer_arguments.check_arguments(command, config["trainer"])
        # A search of the batch takes its size from no rule.
        chooses = config["recipe"] and (command == "fit" or config.get("what") == "lr")
        prepared = self._choose_arguments(command, config) if chooses else 0.0
        config = self.config[command].as_dict()
        self._trainer_arguments = config["trainer"]
        try:
            super().instantiate_classes()
        except Exception as error:
            refusal = trainer_arguments.too_large(error, config)
            refusal = refusal or trainer_arguments.refusal_of_lightning(error, config["trainer"])
            if refusal is None:
                raise
            raise refusal from error
        self.datamodule.prepare_seconds += prepared
        trainer_arguments.refuse_fresh_weights(command, config, self.model)
        self.model.protocol = self._get(self.config_init, "protocol") or FullRanking()
        if self.subcommand == "fit" and self._get(self.config, "ckpt_path"):
            self._keep_checkpoints_together(Path(self._get(self.config, "ckpt_path")))

    def _choose_arguments(self, command: str, config: Mapping[str, Any]) -> float:
        """Parse again, with what the rule chooses for this log below all that is set; return seconds of preparation.

        A run that is resumed has its choices in its config, and baselines have nothing to choose.
        """
        model = class_named(config["model"]["class_path"])
        if config.get("ckpt_path") or issubclass(model, Baseline):
            return 0.0
        data, argv = build_data(self._get(self.config, "data")), list(ArgumentParser.given)
        chosen, table = chosen_arguments(data, model, self.given, config)
        if "model" in chosen:
            chosen["model"] = {"class_path": config["model"]["class_path"], "init_args": chosen["model"]}
        rank_zero_only(show)(table, recipe=chosen)
        # In front of the other configs, which win.
        text = yaml.safe_dump(chosen if self.command else {command: chosen})
        argv[:1] = [*argv[:1], "--config", text] if self.command else ["--config", text, *argv[:1]]
        self.config = self.parser.parse_args(argv)
        self.config[command]["recipe"] = False
        self.config[command]["seed_everything"] = config["seed_everything"]
        return data.prepare_seconds

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        """Build the trainer without those of our callbacks that its other settings exclude."""
        if config.get("enable_checkpointing") is False or config.get("barebones"):
            callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
        loggers = config.get("logger")
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, RunFolder) and config.get("default_root_dir"):
                logger.move_into(Path(config["default_root_dir"]))
        if loggers is False:
            # The config is written into the working folder, perhaps a second time.
            self.save_config_kwargs = {**self.save_config_kwargs, "overwrite": True}
        shown = config.get("enable_progress_bar") is not False and not (STATUS.is_live and sys.stdout.isatty())
        own = config.get("callbacks") or []
        if shown and not any(isinstance(each, ProgressBar) for each in (own if isinstance(own, list) else [own])):
            callbacks = [*callbacks, ProgressLines(STATUS)]
        if not config.get("barebones"):
            return super()._instantiate_trainer(config, callbacks)
        # It has no callbacks, and nothing is written.
        bare = {name: value for name, value in config.items() if name not in ("callbacks", "logger")}
        return Trainer(**bare | {"num_sanity_val_steps": None, "logger": None})

    def _keep_checkpoints_together(self, resumed_from: Path) -> None:
        """Write checkpoints next to the one that was resumed; the new run folder contains only logs and metrics."""
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, (BestCheckpoint, ResumePoints)) and callback.dirpath is None:
                callback.dirpath = str(resumed_from.parent)

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand in OF_THE_DATA:
            names = OF_THE_DATA[subcommand]
            getattr(Trainer, subcommand)(self.datamodule, **{name: self._get(self.config, name) for name in names})
            return
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            refusal = trainer_arguments.refusal_of_lightning(error, self._trainer_arguments)
            trainer_arguments.leave_nothing(self.trainer, refusal or error)
            if refusal is None:
                raise
            raise refusal from error
        finally:
            found: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
            if subcommand in ("fit", "validate", "test") and self.trainer.is_global_zero:
                # Loads what reports need, which is not needed to train.
                from seqrec.experiments.report.card import leave_card

                leave_card(next((each.folder for each in found if isinstance(each, RunSummary)), None))

    def after_fit(self) -> None:
        """Test the best checkpoint, and compare it with baselines."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        untested = getattr(self.trainer, "fast_dev_run", False) or self.trainer.interrupted
        if not untested and self.trainer.limit_test_batches == 0:
            rank_zero_info("trainer.limit_test_batches is 0: nothing is tested")
            return
        pruned = any(isinstance(callback, TrialReporter) and callback.pruned for callback in callbacks)
        if untested or pruned:
            return
        if isinstance(self.model, Baseline):
            self.test(self.model, self.datamodule)
        else:
            files = [c.best_model_path for c in self.trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)]
            best = next(filter(None, files), None)
            if best is None:
                rank_zero_info("the run ended before its first validation: its last weights are tested")
            # A checkpoint has the mean weights, but such a callback would load those of the last step from it.
            self.trainer.callbacks = [c for c in callbacks if not isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
            self.test(self.model, self.datamodule, ckpt_path=best)

    def validate(self, model: Recommender, datamodule: SequenceDataModule, **kwargs: Any) -> None:
        """Compute the metrics of the validation targets."""
        self._evaluate("validate", model, datamodule, kwargs)

    def test(self, model: Recommender, datamodule: SequenceDataModule, **kwargs: Any) -> None:
        """Compute the metrics of the test targets."""
        self._evaluate("test", model, datamodule, kwargs)

    def _evaluate(self, stage: str, model: Recommender, datamodule: SequenceDataModule, kwargs: dict[str, Any]) -> None:
        (values,) = getattr(self.trainer, stage)(model, datamodule=datamodule, **kwargs | {"verbose": False})
        prefix = {"validate": "val_", "test": "test_"}[stage]
        rows = {model.title: {name.removeprefix(prefix): value for name, value in values.items()}}
        loader = datamodule.val_dataloader() if stage == "validate" else datamodule.test_dataloader()
        # The trainer may limit the batches.
        (batches,) = self.trainer.num_val_batches if stage == "validate" else self.trainer.num_test_batches
        users = loader.sampler.num_windows(int(batches))
        left_out = datamodule.split.left_out(datamodule.store, stage)
        folder = self.trainer.log_dir  # a broadcast, so every process asks
        if not self.trainer.is_global_zero:
            return
        repeated = model.repeated_targets[prefix.removesuffix("_")]
        found = caveats(self.trainer, model, prefix.removesuffix("_"))
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        compared = (each.report for each in callbacks if isinstance(each, BaselineComparison))
        report = next(compared, None)
        rows |= {} if report is None else report.rows
        intervals, notes = ({}, []) if report is None else (report.intervals, list(report.notes))
        own = [each for each in callbacks if isinstance(each, (ListReport, ExposureReport))]
        shown = [*(each.table() for each in own), *notes, note_on_repeats(repeated, model.protocol)]
        lines = [part for part in shown if part is not None]
        heading = f"{stage} of {users:,} users{_reasons(left_out)}, protocol {model.protocol.id}"
        parts = report_parts(heading, rows, intervals=intervals, caveats=found, notes=lines)
        about: dict[str, Any] = {"users": users, "left_out": left_out, "repeated": repeated, "caveats": found}
        about["baselines"] = None if report is None else report.as_dict()
        about |= {each.key: each.as_dict() for each in own}
        file = None if folder is None else Path(folder) / f"{stage}_metrics.json"
        content = write_metrics(file, rows, model.protocol.describe(), **about)
        show(*parts, run_folder=folder, **content)
        if folder is None:
            return
        names = ["checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml"]
        written = [f"{stage}_metrics.json", SUMMARY_FILE]
        names += [*written, *([RESULTS_FILE] if stage == "test" else [])]
        there = [name for name in names if name in written or (Path(folder) / name).exists()]
        show(f"run folder: {folder} ({', '.join(there)})")


def _show_store(store: EventStore) -> None:
    show(store.summary(), store=str(store.directory), counts=store.manifest["counts"])


def _reasons(left_out: Mapping[str, int]) -> str:
    """Return the number of users left out by reason, in brackets; empty if no user is left out."""
    reasons = [f"{users:,} with {reason}" for reason, users in left_out.items() if users]
    return f" (not judged: {', '.join(reasons)})" if reasons else ""


def run(name: str | None, words: Sequence[str], summary: str = "", positional: str | None = None) -> None:
    """Run a command that takes the options of a run, with `words`, its arguments with underscores.

    `name` is a method of `Trainer`, or None if the words contain it, after a config of several commands. See
    `Command` for the other arguments.
    """
    if name == "predict":
        words = as_prediction(words)
    named = name or next((word for word in words if word == "fit"), None)
    given = with_names(words, positional, ["--input"] if name == "append" else [])
    argv = expand(named, given, checkpoint="--ckpt_path")
    refuse_missing_config(argv, to_resume=named == "fit")
    if named == "fit":
        refuse_unused_batch_size(words, argv)
    if name in OF_THE_DATA and not sets(argv, "model"):
        argv = ["--model", "Popularity", *argv]
    explicit, argv = argv, with_default_classes(argv)
    # A config beside or inside a checkpoint may be of others, like the checkpoint itself; one inside comes as text.
    given_files = dict(itertools.pairwise(argv))
    inside = "\n" in given_files.get("--config", "")
    named_by_user = name is None or (name_a_config(words) and not inside)
    # A checkpoint alone has no run, and its config writes only beside it.
    place = Path(given_files.get("--ckpt_path") or given_files.get(WARM_START, "")).parent
    run_folder = place.parent if place.name == "checkpoints" else place / "run"
    classes = classes_of_the_user() if named_by_user else only_trusted_classes(words, run_folder)
    argv = argv if name is None else [name, *argv]
    # Lightning starts the other processes of a job with the words of this one.
    sys.argv = [sys.argv[0], *argv]
    ArgumentParser.given, ArgumentParser.of_run = argv, True
    with classes as check:
        SeqrecCLI(
            name,
            check,
            explicit,
            model_class=Recommender,
            datamodule_class=SequenceDataModule,
            trainer_class=Trainer,
            trainer_defaults={
                "logger": {"class_path": "seqrec.RunFolder"},
                "callbacks": [RunMonitor(), GradientNorm(), RunSummary()],
                "num_sanity_val_steps": 0,
            },
            seed_everything_default=0,
            parser_class=RunParser,
            save_config_callback=SavedConfig,
            parser_kwargs={"version": __version__} | ({name: {"description": summary}} if name else {}),
            subclass_mode_model=True,
            auto_configure_optimizers=False,
        )
