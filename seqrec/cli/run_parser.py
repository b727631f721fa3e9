"""The parser of the commands with the options of a run."""

from __future__ import annotations

from argparse import HelpFormatter, _HelpAction
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from seqrec.cli.help import short_help
from seqrec.cli.parsing import ArgumentParser, add_common_options
from seqrec.data.datamodule import SequenceDataModule


class RunParser(ArgumentParser, LightningArgumentParser):
    """Parser of a command with the options of a run."""

    # The command, if `--help` is to list only what most people set first.
    shortened: str | None = None

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Return the help; a short one if `shortened` is set."""
        return short_help(self, self.shortened) if self.shortened else super().format_help(formatter)

    def add_long_help(self, command: str) -> None:
        """Make `--help` short, and add `--help_all` and the help of each part, such as `--trainer.help`."""
        self.shortened = command
        self.add_argument("--help_all", action=_LongHelp, help="list every option")
        add_common_options(self)
        for part in self.groups or ():
            if f"--{part}.help" not in self._option_string_actions:
                self.add_argument(f"--{part}.help", action=_LongHelp, help=f"list the options of {part}")


class _LongHelp(_HelpAction):
    """Prints the help of all options, or those of one part."""

    def __call__(self, parser: Any, namespace: object, values: object, option_string: str | None = None) -> None:
        """Print and exit."""
        part = (option_string or "")[2:].removesuffix(".help")
        parser.shortened = None
        if part in parser.groups:
            formatter = parser._get_formatter()
            formatter.add_arguments(parser.groups[part]._group_actions)
            print(formatter.format_help())
        else:
            parser.print_help()
        parser.exit()


def build_data(config: Any) -> SequenceDataModule:
    """Return the data module of the part `data` of a parsed config, without model and trainer."""
    parser = RunParser()
    parser.add_lightning_class_args(SequenceDataModule, "data")
    found: SequenceDataModule = parser.instantiate_classes(parser.parse_object({"data": config})).data
    return found
