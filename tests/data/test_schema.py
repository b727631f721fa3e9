from __future__ import annotations

import pickle

import pytest
from slow_preparation import small

from seqrec import Filters, InputError, Schema, Synthetic, Table
from seqrec.data.prepare import fingerprint


def test_a_schema_names_only_the_groups_that_have_columns():
    schema = Schema(events={"rating": "numeric"}, users={"age": "categorical"})
    assert schema.named() == {"events": {"rating": "numeric"}, "users": {"age": "categorical"}}
    assert Schema().named() == {}
    assert pickle.loads(pickle.dumps(schema)) == schema


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"items": {"genres": "category"}},
            r"schema\.items\.genres='category' must be one of .*; did you mean cate",
        ),
        (
            {"items": {"genres": ["numeric"]}},
            r"schema\.items\.genres=\['numeric'\] must be one of categorical, numeric",
        ),
        ({"events": {"genres": "categories"}}, r"schema\.events\.genres='categories' is for items and users; an event"),
        ({"events": {"a": "numeric"}, "users": {"a": "numeric"}}, r"schema\.users: the name 'a' is also in schema\.ev"),
        ({"items": {"Year": "numeric", "year": "numeric"}}, r"schema\.items: the name 'year' is also in schema\.items"),
        ({"events": {"timestamp": "numeric"}}, r"schema\.events: 'timestamp' is kept anyway; leave it out"),
        ({"items": {"item_id": "numeric"}}, r"schema\.items: 'item_id' is kept anyway"),
        (
            {"items": {"a/b": "numeric"}},
            r"schema\.items: 'a/b' must become part of a file's name, .* rename the column",
        ),
        ({"items": {"a.offsets": "numeric"}}, r"schema\.items: 'a\.offsets' must become part of a file's name"),
        ({"items": {"": "numeric"}}, r"schema\.items: '' must become part of a file's name"),
        ({"users": ["age"]}, r"schema\.users=\['age'\] must be kinds by name, as in \{rating: numeric\}"),
    ],
)
def test_a_bad_schema_is_refused(columns, message: str):
    with pytest.raises(InputError, match=message):
        Schema(**columns)


def test_names_of_stores_are_those_of_version_2_without_a_schema():
    """Stores that were prepared before schemas existed are still found."""
    log = Table("log.csv", user="a", item="b", timestamp=None)
    assert fingerprint(Synthetic(), Filters()) == "36950291f624"
    assert fingerprint(log, Filters(min_user_events=5, event_filter="a = 1")) == "fc3a0a3f202a"


def test_names_of_stores_differ_by_schema():
    schemas = [
        Schema(),
        Schema(events={"a": "numeric"}),
        Schema(events={"a": "categorical"}),
        Schema({}, {"a": "vector"}),
    ]
    assert len({fingerprint(small(), Filters(), schema) for schema in schemas}) == len(schemas)
