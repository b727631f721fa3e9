from __future__ import annotations

import pytest

from seqrec.callbacks import ResumePoints
from seqrec.errors import InputError


@pytest.mark.parametrize("arguments", [{"every_n_steps": 0}, {"every_minutes": -1.0}], ids=str)
def test_a_distance_that_is_not_positive_is_refused(arguments: dict):
    (name, value) = next(iter(arguments.items()))
    with pytest.raises(InputError, match=rf"{name}={value} must be positive, or null for none"):
        ResumePoints(**arguments)
