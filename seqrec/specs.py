"""Objects as plain `class_path` / `init_args` dictionaries and back.

A checkpoint must load with `weights_only=True`, so a model's hyperparameters may contain no objects. Every part of a
model (encoder, loss, negatives, optimiser, protocol) therefore keeps each constructor argument as an attribute of the
same name, as scikit-learn's estimators do. `to_spec` reads these, and returns the form of a YAML config.
"""

from __future__ import annotations

import inspect
from typing import Any

from seqrec.errors import InputError
from seqrec.registry import class_named, public_path

Spec = dict[str, Any]


def to_spec(value: Any) -> Any:
    """Return `{"class_path": ..., "init_args": {...}}` for an object, and plain data unchanged.

    Raises:
        TypeError: if an object does not keep one of its constructor arguments as an attribute.

    Example:
        >>> from seqrec import LinearWarmup
        >>> to_spec(LinearWarmup(100))
        {'class_path': 'seqrec.LinearWarmup', 'init_args': {'warmup_steps': 100}}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [to_spec(item) for item in value]
    if isinstance(value, dict):
        return {key: to_spec(item) for key, item in value.items()}
    cls = type(value)
    init_args: Spec = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not hasattr(value, name):
            raise TypeError(
                f"{cls.__qualname__} must keep its constructor argument {name!r} as an attribute of that name, "
                "from which checkpoints rebuild it"
            )
        init_args[name] = to_spec(getattr(value, name))
    return {"class_path": public_path(cls), "init_args": init_args}


def from_spec(value: Any) -> Any:
    """Build the object of a spec, the inverse of `to_spec`; objects are returned unchanged.

    Raises:
        InputError: if the class cannot be imported or refuses its arguments.

    Example:
        >>> from_spec({"class_path": "seqrec.LinearWarmup", "init_args": {"warmup_steps": 100}}).warmup_steps
        100
    """
    if isinstance(value, list):
        return [from_spec(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        return {key: from_spec(item) for key, item in value.items()}
    try:
        cls = class_named(str(value["class_path"]))
        return cls(**{key: from_spec(item) for key, item in value.get("init_args", {}).items()})
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(f"cannot build {value['class_path']}: {error}") from error


def with_public_paths(value: Any) -> Any:
    """Return plain data with each `class_path` as `to_spec` writes it now, for comparing old and new specs.

    The path of a class that cannot be imported is unchanged.
    """
    if isinstance(value, list):
        return [with_public_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    plain = {key: with_public_paths(item) for key, item in value.items()}
    if isinstance(plain.get("class_path"), str):
        try:
            plain["class_path"] = public_path(class_named(plain["class_path"]))
        except (ImportError, AttributeError, ValueError):
            return plain
    return plain
