from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from jobs import CONFIG, Job

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that all jobs read."""
    folder = tmp_path_factory.mktemp("prepared") / "store"
    source = Synthetic(**CONFIG["data"]["source"]["init_args"])  # type: ignore[index]
    SequenceDataModule(source, store=str(folder)).prepare_data()
    return folder


@pytest.fixture
def start(tmp_path: Path, prepared: Path) -> Iterator[Callable[..., Job]]:
    """Starts jobs in one folder; none of them outlives the test."""
    config = {**CONFIG, "data": {**CONFIG["data"], "store": str(prepared)}}  # type: ignore[dict-item]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    jobs: list[Job] = []

    def start_job(*words: str, **options: object) -> Job:
        jobs.append(Job(tmp_path, *words, **options))  # type: ignore[arg-type]
        return jobs[-1]

    yield start_job
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            job.signal(signal.SIGKILL)
        job.process.join()
