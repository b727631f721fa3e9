from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from compare_metrics import peers_python
from compare_recommend import compare

from seqrec.data.sources import ML1M


@pytest.mark.slow
def test_bulk_recommendations_take_a_third_of_rectools_time_at_most(real_data: Callable[[str], Path]):
    python = peers_python()
    if python is None:
        pytest.skip("RecTools is not here; tests/peers/requirements.txt, then set SEQREC_PEERS_PYTHON")
    users = compare(ML1M(str(real_data("ml-1m/ml-1m.zip"))), python)
    assert users["seqrec recommend"] >= 3 * users["RecTools"]
