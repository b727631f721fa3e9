from __future__ import annotations

import math

import pytest
import torch

from seqrec.training.optim.row_optimizer import round_stochastically, step_generator

CPU = torch.device("cpu")


def rounded(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return round_stochastically(values, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("scale", [1.0, 2.0**-130, 2.0**100])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_the_share_that_goes_up_is_the_distance_from_below(share: float, sign: float, scale: float):
    # The bfloat16 next to 1 is 1 + 2^-7; 2^-130 is below the smallest normal number, where places are 2^-133.
    last_place = 2.0**-133 / scale if scale < 1e-38 else 2.0**-7
    count = 40_000
    value = sign * scale * (1 + share * last_place)
    out = rounded(torch.full((count,), value)).double() / (sign * scale)
    assert set(out.tolist()) == {1.0, 1 + last_place}
    # Five standard deviations.
    allowed = 5 * math.sqrt(share * (1 - share) / count)
    assert (out > 1).double().mean().item() == pytest.approx(share, abs=allowed)


def test_the_mean_of_many_numbers_is_kept():
    torch.manual_seed(0)
    values = torch.randn(300_001)
    errors = rounded(values).double() - values.double()
    assert errors.abs().max() <= 2.0**-5
    assert abs(errors.mean().item()) <= 5 * errors.std().item() / len(values) ** 0.5
    # No part of a draw that gives four numbers is worth less than the others.
    for first in range(4):
        part = errors[first::4]
        assert abs(part.mean().item()) <= 5 * part.std().item() / len(part) ** 0.5


def test_what_bfloat16_holds_stays():
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    for seed in range(3):
        found = rounded(every.float(), seed)
        assert torch.equal(found.isnan(), every.isnan())
        numbers = ~every.isnan()
        assert torch.equal(found[numbers].view(torch.int16), every[numbers].view(torch.int16))


def test_what_is_no_number_stays_so():
    payloads = [0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF, 0x7FC00000]
    assert rounded(torch.tensor(payloads, dtype=torch.int32).view(torch.float32).repeat(50)).isnan().all()
    infinite = torch.tensor([math.inf, -math.inf]).repeat(50)
    assert torch.equal(rounded(infinite).float(), infinite)


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 3), (2, 5, 7)])
def test_shapes_are_kept(shape: tuple[int, ...]):
    out = rounded(torch.randn(shape))
    assert (out.shape, out.dtype) == (shape, torch.bfloat16)


def test_bits_depend_on_seed_step_and_table():
    def draw(*numbers: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 2**60, (4,), generator=step_generator(*numbers, CPU)).tolist())

    triples = [(seed, step, part) for seed in (0, 1) for step in (1, 2, 70_000) for part in (0, 1)]
    assert len({draw(*triple) for triple in triples}) == len(triples)
    assert draw(1, 2, 3) == draw(1, 2, 3)
