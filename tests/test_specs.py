from __future__ import annotations

import copy
import json

import pytest

from seqrec.data.splits import LastN, LeaveOneOut, Split
from seqrec.errors import InputError
from seqrec.specs import from_spec, to_spec, with_defaults
from seqrec.training.losses import BCE
from seqrec.training.negatives import UniformNegatives
from seqrec.training.optim import AdamW, WarmupCosine


class Forgetful:
    def __init__(self, size: int) -> None:
        pass


class Greedy:
    def __init__(self, **kwargs: int) -> None:
        self.kwargs = kwargs


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "text", [1, [2]], {"a": {"b": 1}}])
def test_plain_values_are_their_own_spec(value: object):
    assert to_spec(value) == value
    assert from_spec(to_spec(value)) == value


def test_an_object_becomes_class_path_and_init_args():
    assert to_spec(UniformNegatives(3, exclude_seen=False)) == {
        "class_path": "seqrec.UniformNegatives",
        "init_args": {"num_negatives": 3, "exclude_seen": False, "shared": False},
    }


def test_nested_objects_survive_the_round_trip_through_json():
    spec = json.loads(json.dumps(to_spec(BCE(UniformNegatives(7)))))
    rebuilt = from_spec(spec)
    assert isinstance(rebuilt, BCE)
    assert isinstance(rebuilt.negatives, UniformNegatives)
    assert rebuilt.negatives.num_negatives == 7
    assert to_spec(rebuilt) == spec


def test_tuples_become_lists():
    assert to_spec(AdamW(betas=(0.8, 0.9)))["init_args"]["betas"] == [0.8, 0.9]
    assert list(from_spec(to_spec(AdamW(betas=(0.8, 0.9)))).betas) == [0.8, 0.9]


def test_objects_in_lists_and_dictionaries_are_found():
    rebuilt = from_spec(to_spec({"losses": [BCE(), BCE(UniformNegatives(2))]}))
    assert [loss.negatives.num_negatives for loss in rebuilt["losses"]] == [1, 2]


def test_objects_pass_through_from_spec_unchanged():
    loss = BCE()
    assert from_spec(loss) is loss


@pytest.mark.parametrize(
    ("was", "now", "same"),
    [
        ({}, LeaveOneOut(), True),
        ({}, LeaveOneOut(train_on_validation=True), False),
        ({"n": 2}, LastN(2), False),
        ({"an_argument_of_later": 1}, LeaveOneOut(), False),
    ],
)
def test_arguments_that_an_older_spec_lacks_have_their_defaults(was: dict, now: Split, same: bool):
    older = {"class_path": "seqrec.data.splits.LeaveOneOut", "init_args": was}
    found = with_defaults(older, to_spec(now))
    assert found["class_path"] == "seqrec.LeaveOneOut"
    assert (found == to_spec(now)) == same


def test_objects_within_an_older_spec_are_completed_too():
    now = to_spec(AdamW(schedule=WarmupCosine(10)))
    older = copy.deepcopy(now)
    assert older["init_args"]["schedule"]["init_args"].pop("min_ratio") == 0.0
    assert with_defaults(older, now) == now


def test_class_path_alone_builds_with_defaults():
    assert from_spec({"class_path": "seqrec.training.optim.AdamW"}).lr == AdamW().lr


def test_an_object_that_forgets_an_argument_is_refused():
    with pytest.raises(TypeError, match="Forgetful must keep its constructor argument 'size' as an attribute"):
        to_spec(Forgetful(3))


def test_an_object_with_open_arguments_is_refused():
    with pytest.raises(TypeError, match="Greedy must keep its constructor argument 'kwargs'"):
        to_spec(Greedy(a=1))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"class_path": "nowhere.at_all.Loss"},
            r"nowhere\.at_all\.Loss is not a class of seqrec, .* If you trust 'nowhere', import it first",
        ),
        (
            {"class_path": "seqrec.training.losses.Missing"},
            r"there is no seqrec.training.losses.Missing: .* no attribute 'Missing'",
        ),
        ({"class_path": "SASRec"}, r"'SASRec' is no path of a class, such as seqrec.FullSoftmax"),
        (
            {"class_path": "seqrec.training.optim.Adam", "init_args": {"rate": 1}},
            r"cannot build .*Adam: .*'rate'",
        ),
        (
            {"class_path": "seqrec.training.optim.Adam", "init_args": {"lr": -1}},
            r"cannot build .*Adam: lr=-1 must be above 0",
        ),
    ],
)
def test_a_spec_that_cannot_be_built_is_refused_by_name(spec: dict, message: str):
    with pytest.raises(InputError, match=message):
        from_spec(spec)
