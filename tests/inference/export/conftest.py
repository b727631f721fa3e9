from __future__ import annotations

from collections.abc import Callable

import pytest
from exported_models import Served, build

from seqrec.inference.export import export
from seqrec.models import SequentialRecommender


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[SequentialRecommender, Served]]:
    """A model in ONNX by the encoder's name, written once for all tests that ask for it."""
    made: dict[str, tuple[SequentialRecommender, Served]] = {}

    def exported(name: str) -> tuple[SequentialRecommender, Served]:
        if name not in made:
            folder, model = tmp_path_factory.mktemp("exported") / name, build(name)
            export(model, folder)
            made[name] = (model, Served(folder))
        return made[name]

    return exported
