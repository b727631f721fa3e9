"""The command line: `seqrec prepare | tune | fit | validate | test | predict`, and `cli_commands.COMMANDS`."""

from __future__ import annotations

import faulthandler
import itertools
import logging
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from seqrec import __version__
from seqrec.catalogue.distributed import leave_job
from seqrec.cli.arguments import (
    refuse_model_max_length,
    refuse_slurm_without_srun,
    with_checkpoint_file,
    with_config_of_checkpoint,
    with_named_target,
    with_protocol_presets,
)
from seqrec.cli.commands import COMMANDS, run_command
from seqrec.cli.errors import explain, in_one_line
from seqrec.cli.trainer import Trainer
from seqrec.data.datamodule import SequenceDataModule
from seqrec.errors import StoppedError
from seqrec.evaluation.protocols import FullRanking, Protocol
from seqrec.evaluation.report import metrics_table, write_metrics
from seqrec.evaluation.results import ResultsWriter
from seqrec.evaluation.results.file import FILE_NAME as RESULTS_FILE
from seqrec.experiments.sweep import TrialReporter
from seqrec.inference import RecommendationWriter
from seqrec.models import Baseline, Popularity, Recommender, evaluate
from seqrec.runs.callbacks import (
    BestCheckpoint,
    EarlyStopping,
    EncoderCompile,
    GradientNorm,
    ResumePoints,
    RunMonitor,
    RunSummary,
)
from seqrec.runs.summary import FILE_NAME as SUMMARY_FILE


class ArgumentParser(LightningArgumentParser):
    """Parser that refuses in one line, with what is allowed."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the reason and exit with status 2."""
        sys.stderr.write(f"error: {explain(message, self, ex)}\n")
        raise SystemExit(2)


class SeqrecCLI(LightningCLI):
    """Lightning's command line with what a run of a recommender needs around it."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Parser without abbreviations, which would let misspelt arguments pass."""
        return super().init_parser(**{"allow_abbrev": False} | kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the protocol, checkpoints, early stopping and the links from data to model."""
        parser.add_subclass_arguments(Protocol, "protocol", required=False)
        parser.set_defaults({"protocol": {"class_path": "seqrec.FullRanking"}})
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(ResumePoints, "resume_points")
        parser.add_lightning_class_args(EncoderCompile, "execution")
        parser.add_lightning_class_args(RecommendationWriter, "recommendations")
        parser.add_lightning_class_args(ResultsWriter, "results")
        parser.set_defaults(
            {
                "checkpoint.filename": "best",
                "checkpoint.monitor": "val_NDCG@10",
                "checkpoint.mode": "max",
                "checkpoint.enable_version_counter": False,
                "early_stopping.monitor": "val_NDCG@10",
                "early_stopping.mode": "max",
                "early_stopping.patience": 5,
            }
        )
        parser.link_arguments("data.max_length", "model.init_args.max_length")
        parser.link_arguments("data.num_items", "model.init_args.num_items", apply_on="instantiate")
        parser.link_arguments("data.num_users", "model.init_args.num_users", apply_on="instantiate")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Trainer methods that are commands, with the arguments that the command line gives them itself."""
        mine = {"prepare": {"datamodule"}, "tune": {"model", "datamodule"}}
        return {**mine, **LightningCLI.subcommands()}

    def _parse_ckpt_path(self) -> None:
        """Leave the config alone: a checkpoint holds the model's arguments, and Lightning checks the weights."""

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; for `prepare` the data alone."""
        if self.subcommand == "prepare":
            parser = ArgumentParser()
            parser.add_lightning_class_args(SequenceDataModule, "data")
            config = parser.parse_object({"data": self._get(self.config, "data")})
            self.datamodule = parser.instantiate_classes(config).data
            return
        refuse_slurm_without_srun(self._get(self.config, "trainer.plugins"))
        super().instantiate_classes()
        self.model.protocol = self._get(self.config_init, "protocol") or FullRanking()
        if self.subcommand == "fit" and self._get(self.config, "ckpt_path"):
            self._keep_checkpoints_together(Path(self._get(self.config, "ckpt_path")))

    def _keep_checkpoints_together(self, resumed_from: Path) -> None:
        """A resumed run has a folder of its own, but goes on with the checkpoints of the run it resumes."""
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, (BestCheckpoint, ResumePoints)) and callback.dirpath is None:
                callback.dirpath = str(resumed_from.parent)

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "prepare":
            Trainer.prepare(self.datamodule, overwrite=self._get(self.config, "overwrite"))
        else:
            super()._run_subcommand(subcommand)

    def after_fit(self) -> None:
        """Test the best checkpoint, beside popularity."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        pruned = any(isinstance(callback, TrialReporter) and callback.pruned for callback in callbacks)
        if getattr(self.trainer, "fast_dev_run", False) or self.trainer.interrupted or pruned:
            return
        if isinstance(self.model, Baseline):
            self.test(self.model, self.datamodule)
        else:
            best = next(c for c in self.trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint))
            if not best.best_model_path:
                rank_zero_info("the run ended before its first validation: its last weights are tested")
            self.test(self.model, self.datamodule, ckpt_path=best.best_model_path or None)

    def validate(self, model: Recommender, datamodule: SequenceDataModule, **kwargs: Any) -> None:
        """Metrics on the validation targets."""
        self._judge("validate", model, datamodule, kwargs)

    def test(self, model: Recommender, datamodule: SequenceDataModule, **kwargs: Any) -> None:
        """Metrics on the test targets."""
        self._judge("test", model, datamodule, kwargs)

    def _judge(
        self, stage: str, model: Recommender, datamodule: SequenceDataModule, kwargs: dict[str, Any]
    ) -> None:
        (values,) = getattr(self.trainer, stage)(model, datamodule=datamodule, **kwargs | {"verbose": False})
        prefix = {"validate": "val_", "test": "test_"}[stage]
        rows = {model.title: {name.removeprefix(prefix): value for name, value in values.items()}}
        loader = datamodule.val_dataloader() if stage == "validate" else datamodule.test_dataloader()
        # Fewer than all where the trainer limits them; the baseline then meets the same ones.
        (batches,) = self.trainer.num_val_batches if stage == "validate" else self.trainer.num_test_batches
        users = loader.sampler.num_windows(int(batches))
        if not isinstance(model, Popularity):
            counts = datamodule.train_item_counts()
            baseline = Popularity.from_counts(counts)
            baseline.protocol = model.protocol
            baseline.to(self.trainer.strategy.root_device)  # where ranks can add up their metrics
            rows[baseline.title] = evaluate(
                baseline,
                itertools.islice(loader, int(batches)),
                item_counts=counts,
                several_targets=datamodule.split.several_targets,
            )
        left_out = datamodule.split.left_out(datamodule.store, stage)
        folder = self.trainer.log_dir  # asks all ranks, so not on the first alone
        self._show(stage, rows, f"{users:,} users{_reasons(left_out)}, protocol {model.protocol.id}", folder)
        if folder is not None and self.trainer.is_global_zero:
            file = Path(folder) / f"{stage}_metrics.json"
            write_metrics(file, rows, model.protocol.describe(), users=users, left_out=left_out)

    @rank_zero_only
    def _show(self, stage: str, rows: dict[str, dict[str, float]], terms: str, folder: str | None) -> None:
        print(f"\n{stage} of {terms}")
        print(metrics_table(rows))
        if folder is not None:
            names = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml")
            found = [name for name in names if (Path(folder) / name).exists()]
            found += [f"{stage}_metrics.json", SUMMARY_FILE]
            if stage == "test" and (Path(folder) / RESULTS_FILE).exists():
                found.append(RESULTS_FILE)
            print(f"run folder: {folder} ({', '.join(found)})")


def _reasons(left_out: Mapping[str, int]) -> str:
    """How many users are not judged and why, in brackets; nothing where all are."""
    reasons = [f"{users:,} with {reason}" for reason, users in left_out.items() if users]
    return f" (not judged: {', '.join(reasons)})" if reasons else ""


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the `seqrec` command.

    Args:
        args: Words behind `seqrec`; None is the command line's.
    """
    _silence_third_parties()
    # A process that the system ends, as where a disk fails under a memory-mapped file, says where it was.
    if not faulthandler.is_enabled() and sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)
    try:
        _run(list(sys.argv[1:] if args is None else args))
        # Short output shows here that nobody reads it, and not when Python ends.
        sys.stdout.flush()
        leave_job()
    except BrokenPipeError:
        # Whoever read our output has gone, as in `seqrec doctor | head`; what is left to write goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except Exception as error:
        # jsonargparse wraps what a constructor raises; what is not ours at heart is a bug and keeps its traceback.
        reason = in_one_line(error)
        if reason is None or os.environ.get("SEQREC_TRACEBACK"):
            raise
        sys.stderr.write(f"error: {reason}\n")
        raise SystemExit(2) from None
    except SystemExit as end:
        if isinstance(end, StoppedError):
            # Ranks stop together, behind a step.
            leave_job()
        raise SystemExit(_status(end)) from None


def _run(words: list[str]) -> None:
    """Run the command that words name."""
    if words and words[0] in COMMANDS:
        run_command(words, main)
        return
    words = with_config_of_checkpoint(with_checkpoint_file(with_named_target(words)))
    words = with_protocol_presets(words)
    refuse_model_max_length(words)
    # Lightning starts the processes of other ranks with the words of this one.
    sys.argv = [sys.argv[0], *words]
    SeqrecCLI(
        Recommender,
        SequenceDataModule,
        trainer_class=Trainer,
        trainer_defaults={
            "logger": {"class_path": "seqrec.RunFolder"},
            "callbacks": [RunMonitor(), GradientNorm(), RunSummary()],
            "num_sanity_val_steps": 0,
        },
        seed_everything_default=0,
        parser_class=ArgumentParser,
        parser_kwargs={
            "description": (
                "Train, compare and serve sequential recommenders on long histories. "
                f"More commands, each with a --help of its own: {', '.join(COMMANDS)}."
            ),
            "version": __version__,
        },
        subclass_mode_model=True,
        auto_configure_optimizers=False,
    )


def _status(end: SystemExit) -> Any:
    """Exit status, where Lightning ends with 1 after Ctrl-C, and with 0 after a SIGTERM outside of training."""
    if isinstance(end.__context__, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return 128 + signal.SIGTERM if isinstance(end, SIGTERMException) else end.code


def _silence_third_parties() -> None:
    """Hide what a user of the command line can do nothing about."""
    # The loader reads memory-mapped arrays; more worker processes do not make it faster.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")
    # Baselines have nothing to optimise.
    warnings.filterwarnings("ignore", message=".*returned `None`.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
