from __future__ import annotations

import gc
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator

import pytest

from seqrec import encoders, models
from seqrec.encoders import ENCODERS
from seqrec.errors import InputError
from seqrec.registry import Registry, class_named, did_you_mean, public_path


class Shape(ABC):
    @abstractmethod
    def area(self) -> float: ...


class Circle(Shape):
    def area(self) -> float:
        return 3.14


class Square(Circle): ...


class Polygon(Shape): ...


@pytest.fixture
def shapes() -> Iterator[Registry[Shape]]:
    yield Registry("shape", Shape)
    gc.collect()  # classes that a test defined are known until they are gone


def test_a_subclass_at_any_depth_is_found_by_its_name(shapes: Registry[Shape]):
    assert shapes["Circle"] is Circle
    assert shapes["Square"] is Square
    assert "Square" in shapes
    assert "Moon" not in shapes


def test_a_class_that_cannot_be_built_is_not_found(shapes: Registry[Shape]):
    assert "Polygon" not in shapes
    with pytest.raises(InputError, match="unknown shape 'Polygon'"):
        shapes["Polygon"]


def test_iteration_yields_what_is_shipped_in_order(shapes: Registry[Shape]):
    assert list(shapes) == []
    assert list(ENCODERS) == sorted(ENCODERS)
    assert {"BERT4Rec", "GRU4Rec", "HRNN", "HSTU", "SASRec", "RecMamba", "MambaRec", "MoEMaTrRec", "Samba"} <= set(
        ENCODERS
    )
    assert len(ENCODERS) == len(list(ENCODERS))


def test_an_unknown_name_is_refused_with_the_known_and_the_nearest():
    message = (
        "unknown encoder 'sasrek'; known: BERT4Rec, GRU4Rec, HRNN, HSTU, MambaRec, MoEMaTrRec, RecMamba, SASRec, "
        "SSD4Rec, Samba; did you mean SASRec?"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        ENCODERS["sasrek"]


def test_an_unknown_name_like_none_gets_no_guess():
    assert did_you_mean("xyz", ENCODERS) == ""


def test_two_classes_of_one_name_are_refused_by_their_paths(shapes: Registry[Shape]):
    class Square(Shape):
        def area(self) -> float:
            return 1.0

    with pytest.raises(InputError, match=r"shape 'Square' is \S+Square and \S+Square; give the path of the one"):
        shapes["Square"]


def test_a_class_is_called_by_the_shortest_path_that_it_can_be_imported_from():
    assert public_path(models.SASRec) == "seqrec.SASRec"
    assert public_path(encoders.SASRec) == "seqrec.encoders.SASRec"
    assert class_named("seqrec.SASRec") is models.SASRec
    assert class_named("seqrec.encoders.SASRec") is encoders.SASRec


def test_a_class_of_another_package_is_called_by_its_own_path():
    assert public_path(Square) == f"{__name__}.Square"


@pytest.mark.parametrize(
    ("path", "cls"),
    [
        ("seqrec.models.mamba_presets.MambaRec", models.MambaRec),
        ("seqrec.encoders.mambarec.MambaRec", encoders.MambaRec),
        ("seqrec.models.SASRec", models.SASRec),
    ],
)
def test_paths_of_an_earlier_version_are_found(path: str, cls: type):
    assert class_named(path) is cls
