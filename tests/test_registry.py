from __future__ import annotations

import re

import pytest

from seqrec.errors import InputError
from seqrec.registry import Registry


@pytest.fixture
def shapes() -> Registry[object]:
    registry: Registry[object] = Registry("shape")
    for name in ("Square", "Circle"):
        registry.register(name)(type(name, (), {}))
    return registry


def test_a_class_is_found_by_its_name_and_returned_unchanged(shapes: Registry[object]):
    @shapes.register("Star")
    class Star: ...

    assert shapes["Star"] is Star
    assert "Star" in shapes
    assert "Moon" not in shapes


def test_names_are_listed_in_order(shapes: Registry[object]):
    assert list(shapes) == ["Circle", "Square"]
    assert len(shapes) == 2


def test_an_unknown_name_is_refused_with_the_known_and_the_nearest(shapes: Registry[object]):
    message = "unknown shape 'Cirle'; known: Circle, Square; did you mean Circle?"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        shapes["Cirle"]


def test_an_unknown_name_like_none_gets_no_guess(shapes: Registry[object]):
    with pytest.raises(InputError, match=r"^unknown shape 'xyz'; known: Circle, Square$"):
        shapes["xyz"]


def test_a_taken_name_is_refused_and_keeps_its_class(shapes: Registry[object]):
    first = shapes["Circle"]
    with pytest.raises(ValueError, match="shape 'Circle' is registered already, by"):
        shapes.register("Circle")(int)
    assert shapes["Circle"] is first
