"""A stand-in for `run_measured`."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace


def in_this_process(function: Callable, arguments: dict, **options: object) -> SimpleNamespace:
    """`run_measured` without the seconds that a process takes to start."""
    return SimpleNamespace(value=json.loads(json.dumps(function(**json.loads(json.dumps(arguments))))))
