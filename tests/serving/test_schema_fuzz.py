"""Requests made up from the OpenAPI schema, right and wrong ones: no answer is a 5xx, and each is in the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks
from served_models import ITEMS, items_of, model, serving

from seqrec.inference.sessions import SessionRecommender
from seqrec.serving import Limits
from seqrec.serving.app import create_app

CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    limits = Limits(max_k=20, max_history=30, max_events=20, max_body_bytes=1 << 16)
    with serving(create_app(SessionRecommender(model()), limits=limits)) as url:
        yield url


def with_known_ids(body: Any) -> Any:
    """The body with items of the catalogue, and few users, so that not everything ends at an unknown one."""
    if isinstance(body, list):
        return [with_known_ids(entry) for entry in body]
    if isinstance(body, dict):
        return {name: known_id(name, value) for name, value in body.items()}
    return body


def known_id(field: str, value: Any) -> Any:
    if field == "item" and isinstance(value, (int, str)) and not isinstance(value, bool):
        return ITEMS[len(str(value)) % len(ITEMS)]
    if field == "user" and isinstance(value, int) and not isinstance(value, bool):
        return value % 5
    if field == "history" and isinstance(value, list):
        return [known_id("item", entry) for entry in value]
    return value


@pytest.mark.parametrize("examples", [30, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("mode", "known"), [("POSITIVE", True), ("POSITIVE", False), ("NEGATIVE", False)])
def test_no_request_from_the_schema_is_answered_5xx(url: str, examples: int, mode: str, known: bool):
    # pytest -m slow tests/serving
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses: set[int] = set()
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 8
    for operation in operations:
        if mode == "NEGATIVE" and not (operation.body or operation.path_parameters):
            continue  # nothing that could be wrong

        @seed(0)
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=GenerationMode[mode]))
        def fuzz(case: schemathesis.Case) -> None:
            if known:
                case.body = with_known_ids(case.body)
            response = case.call()
            statuses.add(response.status_code)
            # A body that is too large is refused unread, of which this check knows nothing.
            refusals = [] if response.status_code == 413 else [openapi_checks.negative_data_rejection]
            case.validate_response(response, checks=[*CHECKS, *refusals])

        fuzz()
    # The requests came to something, and some were refused.
    assert {200, 404, 422} <= statuses if known else {422} <= statuses
    assert httpx.get(f"{url}/health").status_code == 200
    httpx.post(f"{url}/observe", json={"user": "after", "item": ITEMS[0]})
    assert items_of(httpx.post(f"{url}/recommend", json={"user": "after"}))
