"""Attention: every backend against the float64 reference, causality, padding, dropout, memory, bad input."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.errors import InputError
from seqrec.ops import attention
from seqrec.ops.attention import ATTENTION_BACKENDS, split_heads

SEED = torch.tensor([-1234567890123])
NAMES = ("out", "query", "key", "value")


def heads(batch=2, heads=2, length=70, width=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(batch, heads, length, width, generator=generator, dtype=dtype) for _ in range(3)]


def run(inputs, backend, dtype=torch.float32, **options):
    """The output, and the gradients of query, key and value by fixed weights on it."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    out = attention(*inputs, backend=backend, **options)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out.backward(weights.to(dtype))
    return dict(zip(NAMES, [out.detach(), *(x.grad for x in inputs)], strict=True))


def assert_close(actual, expected, term=2.0):
    """`term` is the size of the terms of a sum, which may cancel."""
    for name, value in expected.items():
        scale = max(value.abs().max().item(), term)
        assert (actual[name].double() - value).abs().max() <= 1e-5 * scale, name


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 200), st.integers(1, 40)),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 150),
    dropout=st.sampled_from([0.0, 0.2, 0.9]),
    padded=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_values_and_gradients_equal_the_float64_reference(sizes, causal, window, dropout, padded, seed):
    inputs = heads(*sizes, seed=seed)
    options = {"causal": causal, "dropout": dropout, "seed": SEED + seed, "window": window if causal else None}
    if padded:
        generator = torch.Generator().manual_seed(seed)
        options["lengths"] = torch.randint(1, sizes[2] + 1, sizes[:1], generator=generator)
    expected = run(inputs, "reference", torch.float64, **options)
    backends = ["cpp"] if ATTENTION_BACKENDS["cpp"].missing() is None else []
    if not dropout:
        options.pop("seed")
        backends.append("torch")
    if padded and causal:  # Outputs at padding, which nobody reads, are others.
        backends = [name for name in backends if name != "torch"]
    for backend in backends:
        assert_close(run(inputs, backend, **options), expected, term=2 / (1 - dropout))


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3, "seed": SEED}, {"window": 2}, {"causal": False}], ids=str)
def test_gradcheck_of_the_reference(options):
    inputs = [x.requires_grad_() for x in heads(1, 2, 5, 3)]
    assert torch.autograd.gradcheck(lambda *x: attention(*x, backend="reference", **options), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: attention(*x, backend="reference", **options), inputs)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_many_events_equal_the_float64_reference(cpp, dropout):
    # Gradients of one head are then split into parts.
    inputs, options = heads(1, 1, 1500, 16), {"dropout": dropout, "seed": SEED}
    assert_close(run(inputs, "cpp", **options), run(inputs, "reference", torch.float64, **options))


def gradient_of_packed(packed, split, change, backend="cpp"):
    packed = packed.clone().requires_grad_()
    out = attention(*change(split(packed)), dropout=0.3, seed=SEED, backend=backend)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(out, packed, weights)
    return gradient


@pytest.mark.parametrize("sizes", [(2, 3, 70, 8), (1, 1, 600, 4), (3, 1, 1, 5), (0, 1, 2, 4)], ids=str)
@pytest.mark.parametrize(
    "change",
    [
        lambda heads: heads,
        lambda heads: (heads[0] * 2, heads[1], heads[2]),
        lambda heads: (heads[1], heads[0], heads[2]),
        lambda heads: (heads[0], heads[0], heads[2] + heads[1]),
    ],
    ids=["none", "one of them", "other order", "one twice"],
)
def test_the_gradient_of_the_projection_is_that_of_its_parts(cpp, sizes, change):
    batch, heads, length, width = sizes
    packed = torch.randn(batch, length, 3, heads, width, generator=torch.Generator().manual_seed(0))
    expected = gradient_of_packed(packed, lambda x: x.permute(2, 0, 3, 1, 4), change)
    assert torch.equal(gradient_of_packed(packed, split_heads, change), expected)


def test_gradients_side_by_side_are_not_copied(cpp, monkeypatch):
    def refuse(*_):
        raise AssertionError("copied")

    packed = torch.randn(2, 50, 3, 2, 8)
    expected = gradient_of_packed(packed, lambda x: x.permute(2, 0, 3, 1, 4), lambda heads: heads)
    monkeypatch.setattr(torch, "stack", refuse)
    assert torch.equal(gradient_of_packed(packed, split_heads, lambda heads: heads), expected)
    with pytest.raises(AssertionError, match="copied"):
        gradient_of_packed(packed, split_heads, lambda heads: heads, backend="reference")


def test_second_derivatives_of_split_heads():
    packed = torch.randn(2, 5, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(split_heads, packed)
    assert torch.autograd.gradgradcheck(split_heads, packed)


@pytest.mark.parametrize("width", [3, 16, 64])
def test_every_variant_that_runs_here_draws_the_same_and_agrees(variant, width):
    inputs, options = heads(2, 2, 150, width), {"dropout": 0.5, "seed": SEED}
    assert_close(run(inputs, "cpp", **options), run(inputs, "reference", torch.float64, **options))


@pytest.mark.parametrize("shape", [(2, 1, 900, 8), (5, 4, 130, 8)])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.4, "seed": SEED}], ids=str)
def test_threads_change_no_bit(cpp, monkeypatch, shape, options):
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(run(heads(*shape), "cpp", **options))
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in NAMES)


@pytest.mark.parametrize("backend", ["cpp", "torch", "reference"])
def test_newer_events_change_nothing(cpp, backend):
    query, key, value = heads(2, 2, 130, 8, dtype=torch.float32)
    options = {} if backend == "torch" else {"dropout": 0.3, "seed": SEED}
    expected = attention(query, key, value, backend=backend, **options)
    later = [x.clone() for x in (query, key, value)]
    for x in later:
        x[:, :, 77:] = 1e3
    out = attention(*later, backend=backend, **options)
    torch.testing.assert_close(out[:, :, :77], expected[:, :, :77], rtol=0, atol=1e-6)
    assert not torch.equal(out[:, :, 77:], expected[:, :, 77:])


def test_events_beyond_the_window_change_nothing(cpp):
    query, key, value = heads(1, 2, 200, 8, dtype=torch.float32)
    expected = attention(query, key, value, window=40, backend="cpp")
    key[:, :, :100], value[:, :, :100] = 1e3, 1e3
    out = attention(query, key, value, window=40, backend="cpp")
    assert torch.equal(out[:, :, 140:], expected[:, :, 140:])
    assert not torch.equal(out[:, :, 138:139], expected[:, :, 138:139])


def test_padding_changes_nothing(cpp):
    inputs, lengths = heads(3, 2, 100, 8, dtype=torch.float32), torch.tensor([1, 64, 100])
    for causal in (True, False):
        expected = attention(*inputs, causal=causal, lengths=lengths)
        other = [x.clone() for x in inputs]
        for row, length in enumerate(lengths):
            for x in other:
                x[row, :, length:] = 1e6
        out = attention(*other, causal=causal, lengths=lengths)
        for row, length in enumerate(lengths):
            assert torch.equal(out[row, :, :length], expected[row, :, :length])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_dropout_drops_its_share_and_keeps_the_mean(cpp, backend):
    # Equal scores and the identity as values: the output is the weights.
    length = 256
    zeros, value = torch.zeros(4, 2, length, length), torch.eye(length).expand(4, 2, length, length)
    weights = attention(zeros, zeros, value, causal=False, dropout=0.3, backend=backend) * length
    kept = weights > 0
    assert abs(kept.float().mean() - 0.7) < 0.003
    torch.testing.assert_close(weights[kept], torch.full_like(weights[kept], 1 / 0.7), rtol=1e-4, atol=0)
    # Between heads, rows, and neighbouring queries and keys masks are independent.
    for one, other in (
        (kept[0], kept[1]),
        (kept[:, 0], kept[:, 1]),
        (kept[:, :, 1:], kept[:, :, :-1]),
        (kept[..., 1:], kept[..., :-1]),
        (kept[..., 16:], kept[..., :-16]),
    ):
        assert abs((one & other).float().mean() - 0.49) < 0.006


def test_each_call_draws_anew_and_torchs_seed_decides(cpp):
    inputs = heads(dtype=torch.float32)
    torch.manual_seed(5)
    first, second = (attention(*inputs, dropout=0.5) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(attention(*inputs, dropout=0.5), first)
    assert not torch.equal(first, second)


def test_heads_of_a_packed_projection_are_read_where_they_stand(cpp):
    packed = torch.randn(3, 50, 3, 2, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = attention(*packed.permute(2, 0, 3, 1, 4), dropout=0.2, seed=SEED, backend="cpp")
    assert out.transpose(1, 2).is_contiguous()
    out.square().sum().backward()
    twin = packed.detach().clone().requires_grad_()
    query, key, value = twin.permute(2, 0, 3, 1, 4).contiguous()
    attention(query, key, value, dropout=0.2, seed=SEED, backend="cpp").square().sum().backward()
    torch.testing.assert_close(packed.grad, twin.grad, rtol=0, atol=1e-6)


def test_registration_passes_opcheck(cpp):
    query, key, value = (x.float().requires_grad_() for x in heads(2, 2, 20, 4))
    lengths = torch.tensor([20, 7])
    for seed, given_lengths, threshold in ((SEED, lengths, 9000), (None, None, 0)):
        arguments = (query, key, value, seed, given_lengths, True, 0, threshold)
        torch.library.opcheck(torch.ops.seqrec.attention_compiled_fwd, (*arguments, True))
        out, statistics = torch.ops.seqrec.attention_compiled_fwd(
            *(x.detach() if isinstance(x, torch.Tensor) else x for x in (*arguments, True))
        )
        plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
        torch.library.opcheck(torch.ops.seqrec.attention_compiled_bwd, (out, *plain, out, statistics))


def test_compiled_models_give_the_same(cpp):
    inputs = heads(dtype=torch.float32)
    compiled = torch.compile(lambda *x: attention(*x, window=9), fullgraph=True, backend="aot_eager")
    leaves = [x.requires_grad_() for x in inputs]
    compiled(*leaves).square().sum().backward()
    gradients = [x.grad for x in leaves]
    again = [x.detach().clone().requires_grad_() for x in inputs]
    attention(*again, window=9).square().sum().backward()
    for actual, twin in zip(gradients, again, strict=True):
        torch.testing.assert_close(actual, twin.grad)


def test_a_second_derivative_is_refused(cpp):
    inputs = [x.float().requires_grad_() for x in heads(1, 1, 4, 2)]
    (gradient,) = torch.autograd.grad(attention(*inputs, backend="cpp").square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_half_precision_is_computed_in_float32(cpp):
    inputs = [x.bfloat16() for x in heads(2, 2, 100, 16)]
    out = attention(*inputs, dropout=0.2, seed=SEED)
    assert out.dtype == torch.bfloat16
    expected = attention(*(x.float() for x in inputs), dropout=0.2, seed=SEED)
    torch.testing.assert_close(out, expected.bfloat16())


@pytest.mark.process
def test_memory_grows_with_events_not_with_their_square(cpp):
    """One head of 10,000 events with dropout: L x L weights would be 400 MB, once."""
    script = """
import resource, torch
from seqrec.ops import attention
inputs = [torch.randn(1, 1, 10_000, 16, requires_grad=True) for _ in range(3)]
attention(*(x[:, :, :64] for x in inputs), dropout=0.2).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attention(*inputs, dropout=0.2).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40 * 1024


@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (2, 2, 0, 4)])
@pytest.mark.parametrize("backend", ["cpp", "torch", "reference"])
def test_no_rows_or_no_events_give_no_output(cpp, shape, backend):
    inputs = [torch.zeros(shape, requires_grad=True) for _ in range(3)]
    out = attention(*inputs, dropout=0.2, backend=backend)
    assert out.shape == shape
    out.sum().backward()


FOUR = torch.zeros(2, 2, 5, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout=-0.1 must be"),
        ({"dropout": float("nan")}, "dropout=nan must be"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"window": 3, "causal": False}, "window=3 must be at least 1, and needs causal=True"),
        ({"query": torch.zeros(2, 5, 4)}, r"query must be \(B, H, L, P\)"),
        ({"query": torch.zeros(2, 0, 5, 4)}, "with H and P of at least 1"),
        ({"key": torch.zeros(2, 2, 6, 4)}, r"key must be \(2, 2, 5, 4\), got \(2, 2, 6, 4\)"),
        ({"value": torch.zeros(2, 2, 5, 4).long()}, "value must be real numbers on cpu"),
        ({"lengths": torch.tensor([5])}, r"lengths must be \(2,\) int64 on cpu, got \(1,\)"),
        ({"lengths": torch.tensor([5.0, 5.0])}, "lengths must be .* got .* torch.float32"),
        ({"dropout": 0.5, "seed": torch.tensor(3)}, r"seed must be \(1,\) int64"),
        ({"dropout": 0.5, "seed": SEED, "backend": "torch"}, "backend='torch' has no seed"),
        ({"backend": "flash"}, "backend='flash' is unknown; known: auto, cpp, reference, torch"),
    ],
)
def test_bad_input_is_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        attention(**({"query": FOUR, "key": FOUR, "value": FOUR} | changes))
