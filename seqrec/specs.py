"""Objects as plain `class_path` / `init_args` dictionaries and back.

A checkpoint must load with `weights_only=True`, so a model's hyperparameters may contain no objects. Every part of a
model (encoder, loss, negatives, optimiser, protocol) therefore keeps each constructor argument as an attribute of the
same name, as scikit-learn's estimators do. `to_spec` reads these, and returns the form of a YAML config.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, get_args, get_type_hints

from seqrec.errors import InputError
from seqrec.registry import class_from_file, public_path, trusted_packages

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


def from_spec(value: Any, kind: type[Any] | tuple[type[Any], ...] = object) -> Any:
    """Build the object of a spec, the inverse of `to_spec`; objects are returned unchanged.

    A spec may be from a checkpoint of others, so it builds only what `class_from_file` allows: the object itself must
    be of `kind`, and each object in its arguments of a class that the annotation of the argument names. An
    argument without such an annotation takes only classes of trusted packages, and of the package of the object.

    Args:
        value: A spec, a list or dictionary of specs, plain data or an object.
        kind: Classes of the object, or of the objects in a list or dictionary.

    Raises:
        InputError: if a class is not allowed, or refuses its arguments.

    Example:
        >>> from_spec({"class_path": "seqrec.LinearWarmup", "init_args": {"warmup_steps": 100}}).warmup_steps
        100
    """
    return _build(value, kind if isinstance(kind, tuple) else (kind,))


def _build(value: Any, kinds: tuple[type[Any], ...], owner: type[Any] | None = None) -> Any:
    """Build the objects of an argument of `owner`, which declares no class if there are no kinds."""
    if isinstance(value, list):
        return [_build(item, kinds, owner) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        return {key: _build(item, kinds, owner) for key, item in value.items()}
    cls = class_from_file(value["class_path"], kinds or _undeclared(value["class_path"], owner))
    init_args = value.get("init_args", {})
    if not isinstance(init_args, dict):
        raise InputError(f"cannot build {value['class_path']}: its init_args must be a mapping")
    arguments = arguments_from_specs(cls, init_args)
    try:
        return cls(**arguments)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(f"cannot build {value['class_path']}: {error}") from error


def arguments_from_specs(cls: type[Any], init_args: Spec) -> dict[str, Any]:
    """Return constructor arguments of a class with the objects of their specs, under the same rules as `from_spec`.

    Raises:
        InputError: if an argument may not be of the class that its spec names.
    """
    declared = argument_kinds(cls)
    return {name: _build(item, declared.get(name, ()), cls) for name, item in init_args.items()}


def _undeclared(path: object, owner: type[Any] | None) -> tuple[type[Any], ...]:
    """Return the kinds that an argument takes if its annotation names no class."""
    package, own = str(path).partition(".")[0], "" if owner is None else owner.__module__.partition(".")[0]
    if package in trusted_packages() or (package == own and own != "seqrec"):
        return (object,)
    raise InputError(f"an argument of {'it' if owner is None else owner.__name__} takes no object, but has {path}")


def argument_kinds(cls: type[Any]) -> dict[str, tuple[type[Any], ...]]:
    """Return the classes that the annotation of each constructor argument names, those of parent classes included.

    An argument without annotation, or with `Any`, has none. Plain types, such as `int` and `str`, are left out.

    Example:
        >>> from seqrec.training.optim import Adam
        >>> [kind.__name__ for kind in argument_kinds(Adam)["schedule"]]
        ['Schedule']
    """
    found: dict[str, tuple[type[Any], ...]] = {}
    for parent in cls.__mro__:
        constructor = vars(parent).get("__init__")
        if constructor is None:
            continue
        try:
            hints = get_type_hints(constructor)
        except (NameError, TypeError):
            # Names that only type checkers import: nothing is declared.
            hints = {}
        for name, hint in hints.items():
            found.setdefault(name, tuple(classes_in(hint)))
    return found


def classes_in(hint: Any) -> Iterator[type[Any]]:
    """Yield the classes in an annotation, such as `Schedule` in `Schedule | None`; no built-in ones."""
    if isinstance(hint, type) and not get_args(hint):
        if hint.__module__ != "builtins" and hint is not Any:
            yield hint
        return
    for part in get_args(hint):
        yield from classes_in(part)


def with_defaults(was: Any, now: Any) -> Any:
    """Return a spec from a file as `to_spec` would write it now, for comparing it with the spec `now`.

    If both are of one class, arguments that the older version of it did not have get their defaults. Otherwise, and if
    it cannot be built, only its paths become public ones.

    Example:
        >>> from seqrec import LeaveOneOut
        >>> with_defaults({"class_path": "seqrec.LeaveOneOut", "init_args": {}}, to_spec(LeaveOneOut()))
        {'class_path': 'seqrec.LeaveOneOut', 'init_args': {'train_on_validation': False}}
    """
    was = with_public_paths(was)
    path = now.get("class_path") if isinstance(now, dict) else None
    if path is not None and isinstance(was, dict) and was.get("class_path") == path:
        with suppress(InputError, TypeError):
            return to_spec(from_spec(was, class_from_file(path, (object,))))
    return was


def with_public_paths(value: Any) -> Any:
    """Return plain data with each `class_path` as `to_spec` writes it now, for comparing old and new specs.

    The path of a class that is neither one of seqrec nor imported is unchanged.
    """
    if isinstance(value, list):
        return [with_public_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    plain = {key: with_public_paths(item) for key, item in value.items()}
    if isinstance(plain.get("class_path"), str):
        try:
            plain["class_path"] = public_path(class_from_file(plain["class_path"], (object,)))
        except InputError:
            return plain
    return plain


def kind_of(spec: Any) -> Any:
    """Return the class of a spec, without its arguments."""
    return spec.get("class_path") if isinstance(spec, dict) else spec


def shown_spec(spec: Any) -> str:
    """Return a spec in one line for a message."""
    if not isinstance(spec, dict):
        return spec.rpartition(".")[2] if isinstance(spec, str) else str(spec)
    arguments = ", ".join(f"{name}={value}" for name, value in spec.get("init_args", {}).items())
    return f"{shown_spec(kind_of(spec))}({arguments})"
