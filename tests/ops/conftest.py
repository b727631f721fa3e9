"""What tests of ops share."""

import os

import pytest

from seqrec.ops import compiled_library


@pytest.fixture(scope="session", autouse=True)
def fast_interpreter(interpreter_patches_its_language_once):
    """Triton's interpreter at twice its speed."""


@pytest.fixture(scope="session")
def cpp():
    """The compiled library; it must be there in CI."""
    if reason := compiled_library.load_error():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@pytest.fixture
def loading():
    """For a test that changes which library is found."""
    compiled_library.load.cache_clear()
    yield compiled_library.load
    compiled_library.load.cache_clear()


@pytest.fixture(params=[name for name, _, _ in compiled_library.VARIANTS])
def variant(cpp, loading, monkeypatch, request):
    """Each build of the compiled library in turn is the one that is used."""
    chosen = [variant for variant in compiled_library.VARIANTS if variant[0] == request.param]
    monkeypatch.setattr(compiled_library, "VARIANTS", chosen)
    loading.cache_clear()
    if compiled_library.variant() is None:
        pytest.skip("this CPU lacks its instructions")
