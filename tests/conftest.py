from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Tiny tensors are slower on many threads, much so on a busy machine. Read when torch loads, here and in the
# processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).parents[1]


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
