"""Old import paths and names, with which code, configs and checkpoints of an earlier version keep working.

This is the only place that lists them. `MODULES` lists modules that have moved, `NAMES` lists names that have changed.
Nothing here imports the rest of the package.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Here, at the bottom, so that every room can record it in the files that it writes.
__version__ = "0.2.0"

# Old module -> the module or package that has its names now. Submodules of an old module follow it.
MODULES: dict[str, str] = {
    "seqrec.benchmark.grid": "seqrec.experiments.grid",
    "seqrec.benchmark.paper": "seqrec.experiments.paper",
    "seqrec.benchmark.paper_report": "seqrec.experiments.report",
    "seqrec.callbacks": "seqrec.runs.callbacks",
    "seqrec.data.batching": "seqrec.data.sampler",
    "seqrec.data.files_in_use": "seqrec.data.store",
    "seqrec.data.filters": "seqrec.data.prepare",
    "seqrec.data.inspect_text": "seqrec.data.inspect",
    "seqrec.data.item_counts": "seqrec.data.splits",
    "seqrec.data.loader": "seqrec.data.datamodule",
    "seqrec.data.preparation": "seqrec.data.prepare",
    "seqrec.data.ragged": "seqrec.data.windows",
    "seqrec.data.resuming": "seqrec.data.position",
    "seqrec.data.sources.base": "seqrec.data.sources.source",
    "seqrec.data.time_points": "seqrec.data.splits",
    "seqrec.distributed": "seqrec.catalogue.distributed",
    "seqrec.doctor": "seqrec.cli.doctor",
    "seqrec.embeddings": "seqrec.catalogue.table",
    "seqrec.encoders.base": "seqrec.encoders.sequence_encoder",
    "seqrec.inference.block_list": "seqrec.catalogue.histories",
    "seqrec.inference.sessions.stores.memory": "seqrec.inference.sessions.stores",
    "seqrec.layers": "seqrec.encoders.layers",
    "seqrec.losses": "seqrec.training.losses",
    "seqrec.metrics": "seqrec.evaluation.metrics",
    "seqrec.models.base": "seqrec.models.recommender",
    "seqrec.models.baselines.recent_popularity": "seqrec.models.baselines",
    "seqrec.models.histories": "seqrec.catalogue.histories",
    "seqrec.models.mamba_presets": "seqrec.models.presets",
    "seqrec.models.recommending": "seqrec.catalogue.recommend",
    "seqrec.models.streamed": "seqrec.models.sequential",
    "seqrec.negatives": "seqrec.training.negatives",
    "seqrec.optim": "seqrec.training.optim",
    "seqrec.protocols": "seqrec.evaluation.protocols",
    "seqrec.ranks": "seqrec.evaluation.target_ranks",
    "seqrec.report": "seqrec.evaluation.report",
    "seqrec.results": "seqrec.evaluation.results",
    "seqrec.scoring": "seqrec.catalogue.scorer",
    "seqrec.search": "seqrec.catalogue.search",
    "seqrec.sharding": "seqrec.catalogue.sharding",
    "seqrec.streaming": "seqrec.encoders.state",
    "seqrec.sweep": "seqrec.experiments.sweep",
    "seqrec.testing": "seqrec.encoders.contract",
    "seqrec.tuning": "seqrec.experiments.tuning",
}
# Present module -> a name that it had -> the present path.
NAMES: dict[str, dict[str, str]] = {
    "seqrec": {"EarlyStopping": "seqrec.runs.callbacks.ResumableEarlyStopping"},
    "seqrec.encoders.layers": {"streamed": "seqrec.encoders.layers.as_streaming"},
    "seqrec.evaluation.results": {"compare_results": "seqrec.evaluation.results.compare"},
    "seqrec.inference": {
        "export_model": "seqrec.inference.export.export",
        "load_recommender": "seqrec.inference.load",
    },
    "seqrec.inference.export": {"export_model": "seqrec.inference.export.export"},
    "seqrec.inference.sessions": {
        "Memory": "seqrec.inference.sessions.UserState",
        "MemoryStore": "seqrec.inference.sessions.InMemoryStore",
        "ReencodedMemory": "seqrec.inference.sessions.ReencodedState",
        "StreamedMemory": "seqrec.inference.sessions.StreamedState",
    },
    "seqrec.inference.sessions.stores": {"MemoryStore": "seqrec.inference.sessions.InMemoryStore"},
    "seqrec.runs.callbacks": {
        "CheckpointFiles": "seqrec.runs.callbacks.UseAtomicCheckpoints",
        "EarlyStopping": "seqrec.runs.callbacks.ResumableEarlyStopping",
        "Execution": "seqrec.runs.callbacks.EncoderCompile",
    },
    "seqrec.training.optim": {
        "RowAdagrad": "seqrec.training.optim.RowwiseAdagradOptimizer",
        "RowAdam": "seqrec.training.optim.LazyAdamOptimizer",
        "in_words": "seqrec.training.optim.describe_optimizer",
    },
}


def present_module(old: str) -> str | None:
    """Return the module that has the names of a module that has moved; None if the table does not list `old`.

    A file that has since been merged into another one is found in its package, which exports every public name.

    Example:
        >>> present_module("seqrec.losses.full_softmax")
        'seqrec.training.losses.full_softmax'
    """
    prefix = old
    while prefix and prefix not in MODULES:
        prefix = prefix.rpartition(".")[0]
    if not prefix:
        return None
    found = MODULES[prefix] + old[len(prefix) :]
    while found != MODULES[prefix] and not _exists(found):
        found = found.rpartition(".")[0]
    return found


def old_names(module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of the module of that name, which finds names that have changed.

    Example:
        >>> old_names("seqrec.training.optim")("RowAdam").__name__
        'LazyAdamOptimizer'
    """

    def __getattr__(name: str) -> Any:  # noqa: N807  # the module's hook of that name
        if name not in NAMES.get(module, {}):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return pkgutil.resolve_name(NAMES[module][name])

    return __getattr__


def install() -> None:
    """Make old import paths importable by one finder, which is used only for modules that no other finder finds."""
    if not any(isinstance(finder, _OldPaths) for finder in sys.meta_path):
        sys.meta_path.append(_OldPaths())


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class _OldPaths(MetaPathFinder, Loader):
    """Finds modules under the names that they had before they moved, and looks each name up in the present module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("seqrec.") or present_module(fullname) is None:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        name = present_module(module.__name__)
        assert name is not None
        present = importlib.import_module(name)
        module.__dict__.update(__getattr__=partial(getattr, present), __doc__=present.__doc__)
