from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from seqrec.errors import InputError
from seqrec.models import MambaRec
from seqrec.specs import from_spec, to_spec
from seqrec.training.optim import Adam, AdamW, OptimizerFactory

both = pytest.mark.parametrize("kind", [Adam, AdamW])


@both
def test_settings_reach_the_optimizer(kind: type[OptimizerFactory]):
    built = kind(0.03, betas=(0.7, 0.8)).build(nn.Linear(2, 2))
    assert type(built) is getattr(torch.optim, kind.__name__)
    for group in built.param_groups:
        assert group["lr"] == 0.03
        assert tuple(group["betas"]) == (0.7, 0.8)


@both
def test_every_parameter_that_wants_a_gradient_is_optimised_once(kind: type[OptimizerFactory]):
    model = MambaRec(9, d_model=4)
    model.items.table.weight.requires_grad_(False)
    built = kind().build(model)
    found = sorted(id(p) for group in built.param_groups for p in group["params"])
    assert found == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_adam_decays_nothing():
    assert {group["weight_decay"] for group in Adam().build(nn.Linear(2, 2)).param_groups} == {0}


def test_adamw_decays_matrices_but_no_vectors_tables_or_state_matrices():
    model = MambaRec(9, d_model=4, num_layers=1, user_embedding=True, num_users=3)
    built = AdamW(weight_decay=0.1).build(model)
    decay = {id(p): group["weight_decay"] for group in built.param_groups for p in group["params"]}
    decayed = {name for name, parameter in model.named_parameters() if decay[id(parameter)] > 0}
    mixer = "encoder.stack.blocks.0.0.layer"
    assert decayed == {
        f"{mixer}.in_projection.weight",
        f"{mixer}.conv_weight",
        f"{mixer}.scan_projection.weight",
        f"{mixer}.dt_projection.weight",
        f"{mixer}.out_projection.weight",
    }
    assert set(decay.values()) == {0.1, 0.0}


@both
def test_a_step_goes_down(kind: type[OptimizerFactory]):
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)
    built, x = kind(0.01).build(layer), torch.randn(5, 3)
    before = layer(x).square().mean()
    before.backward()
    built.step()
    assert layer(x).square().mean() < before


@both
def test_settings_survive_as_a_spec(kind: type[OptimizerFactory]):
    rebuilt = from_spec(to_spec(kind(0.5, betas=(0.1, 0.2))))
    assert (rebuilt.lr, tuple(rebuilt.betas)) == (0.5, (0.1, 0.2))
    rebuilt.build(nn.Linear(2, 2))


@both
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr=0.0 must be above 0"),
        ({"lr": -1.0}, "lr=-1.0 must be above 0"),
        ({"betas": (0.9, 1.0)}, "betas=(0.9, 1.0) must be at least 0 and below 1"),
        ({"betas": (-0.1, 0.9)}, "betas=(-0.1, 0.9) must be at least 0 and below 1"),
    ],
)
def test_values_out_of_range_are_refused(kind: type[OptimizerFactory], arguments: dict, message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        kind(**arguments)


def test_a_negative_weight_decay_is_refused():
    with pytest.raises(InputError, match=r"weight_decay=-0.1 must be at least 0"):
        AdamW(weight_decay=-0.1)
