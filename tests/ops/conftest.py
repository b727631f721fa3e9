"""What tests of ops share."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def fast_interpreter(interpreter_patches_its_language_once):
    """Triton's interpreter at twice its speed."""
