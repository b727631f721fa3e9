from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Tiny tensors are slower on many threads, much so on a busy machine. Read when torch loads, here and in the
# processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import torch

# A busy machine would fail a test for its time.
hypothesis.settings.register_profile("seqrec", deadline=None)
hypothesis.settings.load_profile("seqrec")

# Without a GPU, Triton's kernels are tested in its interpreter. Read when triton loads.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).parents[1]

# A tenth of the time went to the collector of garbage, which looked at modules and tests again and again.
gc.set_threshold(10_000, 10, 10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files run in this order: the longest one first, so that no process ends long before another."""
    items.sort(key=lambda item: item.get_closest_marker("notebook") is None)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Path of a real log by its place in the data folder, such as "ml-1m/ml-1m.zip".

    Without it the test skips, but where SEQREC_DATA says that the folder is there, as CI does, it fails.
    """

    def find(name: str) -> Path:
        folder = Path(os.environ.get("SEQREC_DATA", REPOSITORY.parent / "shared" / "data"))
        if not (folder / name).exists():
            refuse = pytest.fail if "SEQREC_DATA" in os.environ else pytest.skip
            refuse(f"{name} is not in {folder}; set SEQREC_DATA to the folder that holds it")
        return folder / name

    return find


@pytest.fixture(scope="session", autouse=True)
def parsers_filter_their_actions_once():
    """Save a fifth of the time of a command: jsonargparse filters hundreds of actions at each look at one of them."""
    from jsonargparse import _subcommands

    plain, filtered = _subcommands.filter_non_parsing_actions, {}

    def filter_once(actions):
        _, before, found = filtered.get(id(actions), (None, None, None))
        if before != actions:  # compared one by one, since parsers add actions and remove some
            if len(filtered) > 100:
                filtered.clear()
            found = plain(actions)
            filtered[id(actions)] = actions, actions.copy(), found
        return found

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_subcommands, "filter_non_parsing_actions", filter_once)
        yield


@pytest.fixture(scope="session")
def interpreter_patches_its_language_once():
    """Halve the time of Triton's interpreter, which patches its language anew at each call that a kernel makes."""
    from seqrec.ops import triton_support
    from seqrec.ops.selective_scan import SCAN_BACKENDS

    if not triton_support.interprets() or SCAN_BACKENDS["triton"].missing():
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def patch_once(function):
        languages = [x for x in function.__globals__.values() if x is tl or x is tl.core]
        if any(tl.core.is_builtin(language.load) for language in languages):
            return patch(function)
        return interpreter._LangPatchScope()

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
        yield


@pytest.fixture
def sparse_gradient() -> Callable[..., torch.Tensor]:
    """Gradient of a table of so many rows, from numbers of rows, in any order and possibly repeated, and values."""

    def make(row_ids: list[int], values: torch.Tensor, rows: int) -> torch.Tensor:
        return torch.sparse_coo_tensor(torch.tensor([row_ids]), values, (rows, values.shape[1]), check_invariants=True)

    return make
