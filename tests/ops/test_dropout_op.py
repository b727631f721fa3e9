"""Dropout by counter: the compiled library against the reference, its statistics, and bad input."""

import math

import pytest
import torch

from seqrec.encoders.layers import Dropout
from seqrec.errors import InputError
from seqrec.ops import dropout
from seqrec.ops.dropout import DROPOUT_BACKENDS
from seqrec.ops.random import kept, new_seed

SEED = torch.tensor([987654321])


@pytest.mark.parametrize("count", [1, 15, 16, 31, 32, 33, 4095, 4096, 4097, 10_007])
def test_every_variant_drops_what_the_reference_drops(variant, count):
    x = torch.randn(count, requires_grad=True)
    y = dropout(x, 0.3, seed=SEED, backend="cpp")
    expected = dropout(x, 0.3, seed=SEED, backend="reference")
    torch.testing.assert_close(y, expected)
    weights = torch.randn(count)
    gradients = [torch.autograd.grad(out, x, weights)[0] for out in (y, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.kernels
@pytest.mark.parametrize("count", [1, 33, 4096, 10_007])
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_triton_drops_what_the_reference_drops(count, share):
    if reason := DROPOUT_BACKENDS["triton"].why_unusable("cpu", torch.float32, ("seed",)):
        pytest.skip(f"triton {reason}")
    x, weights = torch.randn(2, count)
    x = x.requires_grad_()
    for seed in (SEED, -SEED, SEED << 30):
        y, expected = (dropout(x, share, seed=seed, backend=backend) for backend in ("triton", "reference"))
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(*(torch.autograd.grad(out, x, weights)[0] for out in (y, expected)))
    y = dropout(x, share, backend="triton")
    with pytest.raises(NotImplementedError, match="the triton dropout has no second derivative"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)[0].sum().backward()


@pytest.mark.kernels
def test_registration_of_triton_passes_opcheck():
    if reason := DROPOUT_BACKENDS["triton"].why_unusable("cpu", torch.float32, ("seed",)):
        pytest.skip(f"triton {reason}")
    x = torch.randn(7, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.seqrec.dropout_triton_fwd, (x, SEED, 20_000))


@pytest.mark.parametrize("backend", ["cpp", "torch", "reference"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_is_dropped_and_the_mean_is_kept(cpp, backend, share):
    y = dropout(torch.ones(400, 1000), share, backend=backend)
    dropped = (y == 0).float().mean().item()
    assert abs(dropped - share) < 5 * math.sqrt(share * (1 - share) / y.numel())
    torch.testing.assert_close(y.max(), torch.tensor(1 / (1 - share)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("lag", [1, 2, 15, 16, 17, 31, 32, 33, 1000, 4096, 8192])
def test_elements_are_independent_of_their_neighbours(lag):
    mask = dropout(torch.ones(1_000_000), 0.5, seed=SEED, backend="auto") > 0
    assert abs((mask[lag:] & mask[:-lag]).float().mean() - 0.25) < 0.003


def test_seeds_are_independent():
    """Layers, steps and ranks have other seeds, also neighbouring ones."""
    masks = [dropout(torch.ones(200_000), 0.5, seed=SEED + i) > 0 for i in (0, 1, 2, 1 << 32, 1 << 40)]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs((one & other).float().mean() - 0.25) < 0.006


def test_numbers_are_uniform_over_rows_and_columns():
    """Chi-square over 256 bins of each number's distribution, drawn by thresholds; 99.99 % of 15 degrees is 44.3."""
    rows, columns = torch.arange(300).unsqueeze(1), torch.arange(512)
    above = torch.stack([kept(SEED, rows, columns, 4096 * i) for i in range(1, 16)]).sum(0)
    counts = torch.bincount(above.flatten(), minlength=16).double()
    expected = above.numel() / 16
    assert ((counts - expected).square() / expected).sum() < 44.3


def test_torchs_seed_decides_and_each_call_draws_anew():
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)
    assert new_seed() != new_seed()


def test_threads_change_no_bit(cpp, monkeypatch):
    x, results = torch.randn(3_000_001), []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(dropout(x, 0.2, seed=SEED))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_what_is_dropped_may_be_infinite():
    y = dropout(torch.full((1000,), float("inf")), 0.5)
    assert sorted(set(y.tolist())) == [0.0, float("inf")]


def test_registration_passes_opcheck(cpp):
    x = torch.randn(7, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.seqrec.dropout_compiled_fwd, (x, SEED, 20_000))


def test_half_precision_keeps_its_dtype():
    y = dropout(torch.ones(100, dtype=torch.bfloat16), 0.5)
    assert y.dtype == torch.bfloat16
    assert sorted(set(y.tolist())) == [0.0, 2.0]


def test_nothing_dropped_is_the_same_tensor_and_no_elements_are_none():
    x = torch.randn(3)
    assert dropout(x, 0.0) is x
    assert dropout(torch.zeros(0, 4), 0.5).shape == (0, 4)


def test_the_layer_drops_in_training_only():
    layer = Dropout(0.5)
    x = torch.ones(1000)
    assert 0 < (layer(x) == 0).sum() < 1000
    assert layer.eval()(x) is x


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
def test_shares_out_of_range_are_refused(share):
    with pytest.raises(InputError, match="must be at least 0 and below 1"):
        dropout(torch.ones(3), share)
    with pytest.raises(InputError, match="dropout="):
        Dropout(share)


@pytest.mark.parametrize("seed", [torch.tensor(1), torch.tensor([1.0]), torch.tensor([1, 2])])
def test_seeds_of_another_form_are_refused(seed):
    with pytest.raises(InputError, match=r"seed must be \(1,\) int64 on cpu"):
        dropout(torch.ones(3), 0.5, seed=seed)
