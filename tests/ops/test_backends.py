"""The choice of "auto", and the messages of refusals and warnings."""

import pytest
import torch

from seqrec.errors import InputError
from seqrec.ops.backends import Backend, Backends


def make_backends():
    return Backends(
        "sum",
        "SEQREC_TEST_BACKEND",
        [
            Backend("package", max, "cuda", lambda device, dtype: True, lambda: "not installed", extra=True),
            Backend("kernel", sum, "float32", lambda device, dtype: dtype == torch.float32, lambda: "not built"),
            Backend(
                "fast",
                sum,
                "cpu",
                lambda device, dtype: device == "cpu",
                unsupported_args=frozenset({"start"}),
            ),
            Backend("plain", sum, "anywhere", lambda device, dtype: True),
        ],
    )


@pytest.fixture(autouse=True)
def without_variable(monkeypatch):
    monkeypatch.delenv("SEQREC_TEST_BACKEND", raising=False)


@pytest.mark.parametrize(
    ("device", "given", "expected"),
    [("cpu", (), "fast"), ("cpu", ("valid",), "fast"), ("cpu", ("start",), "plain"), ("cuda", (), "plain")],
)
def test_auto_is_the_first_that_can(device, given, expected):
    assert make_backends().choose("auto", device, torch.float64, given).name == expected


def test_auto_passes_by_what_is_only_for_its_name_on_a_device():
    backends = Backends(
        "sum",
        "SEQREC_TEST_BACKEND",
        [
            Backend("traced", sum, "anywhere", lambda device, dtype: True, never_auto=frozenset({"cpu"})),
            Backend("plain", sum, "anywhere", lambda device, dtype: True),
        ],
    )
    assert backends.choose("auto", "cpu", torch.float32).name == "plain"
    assert backends.choose("auto", "cuda", torch.float32).name == "traced"
    assert backends.choose("traced", "cpu", torch.float32).name == "traced"


def test_a_missing_kernel_is_logged_once_and_a_missing_extra_never(caplog):
    backends = make_backends()
    for _ in range(2):
        assert backends.choose("auto", "cpu", torch.float32).name == "fast"
    backends.choose("auto", "cpu", torch.float64)
    assert [record.message for record in caplog.records] == [
        "sum: backend 'kernel' is missing, the slower 'fast' is used: not built"
    ]


def test_the_environment_decides_auto_and_nothing_else(monkeypatch):
    monkeypatch.setenv("SEQREC_TEST_BACKEND", "plain")
    assert make_backends().choose("auto", "cpu", torch.float32).name == "plain"
    assert make_backends().choose("fast", "cpu", torch.float32).name == "fast"


@pytest.mark.parametrize(
    ("name", "device", "given", "message"),
    [
        ("kernel", "cpu", (), r"^backend='kernel' is unavailable: not built; or use 'auto' or 'fast'$"),
        ("fast", "cuda", (), r"^backend='fast' runs cpu, got torch\.float32 on cuda; or use"),
        ("fast", "cpu", ("valid", "start"), r"^backend='fast' has no start; or use"),
        ("best", "cpu", (), r"^backend='best' is unknown; known: auto, fast, kernel, package, plain$"),
    ],
)
def test_a_backend_that_cannot_is_refused_with_the_reason(name, device, given, message):
    with pytest.raises(InputError, match=message):
        make_backends().choose(name, device, torch.float32, given)


def test_a_refusal_names_the_environment_variable(monkeypatch):
    monkeypatch.setenv("SEQREC_TEST_BACKEND", "best")
    with pytest.raises(InputError, match=r"^SEQREC_TEST_BACKEND='best' is unknown; known: auto"):
        make_backends().choose("auto", "cpu", torch.float32)
