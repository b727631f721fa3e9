from __future__ import annotations

import json
from pathlib import Path

from seqrec.evaluation.protocols import FullRanking
from seqrec.evaluation.report import metrics_table, note_on_repeats, write_metrics

ROWS = {"Popularity": {"HR@10": 0.25, "NDCG@10": 1.0}, "SASRec": {"HR@10": 0.756789, "NDCG@10": 0.5}}


def test_the_table_has_a_line_a_model_and_four_decimals():
    header, *lines = str(metrics_table(ROWS)).split("\n")
    assert header.split() == ["model", "HR@10", "NDCG@10"]
    assert [line.split() for line in lines] == [
        ["Popularity", "0.2500", "1.0000"],
        ["SASRec", "0.7568", "0.5000"],
    ]


def test_the_tables_columns_are_aligned():
    for rows in (ROWS, {"M": {"HR@1": 0.0}}, {"M": {"catalogue coverage@10": 0.5, "HR@10": 0.1}}):
        assert len({len(line) for line in str(metrics_table(rows)).split("\n")}) == 1


def test_columns_are_matched_by_name_not_by_place():
    rows = {"A": {"HR@10": 0.1, "NDCG@10": 0.2}, "B": {"NDCG@10": 0.4, "HR@10": 0.3}}
    assert str(metrics_table(rows)).split("\n")[2].split() == ["B", "0.3000", "0.4000"]


def test_the_file_holds_the_protocol_the_users_and_the_exact_numbers(tmp_path: Path):
    protocol = FullRanking().describe()
    left_out = {"no event in its time": 2}
    write_metrics(tmp_path / "metrics.json", ROWS, protocol, users=7, left_out=left_out, repeated=0.25)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "protocol": "full-seenout-tiemean-loo",
        "settings": protocol,
        "users": 7,
        "left_out": left_out,
        "repeated_targets": 0.25,
        "caveats": [],
        "models": ROWS,
        "baselines": None,
        "lists": None,
        "exposures": None,
    }


def test_targets_that_no_list_can_contain_are_stated():
    note = note_on_repeats(0.123, FullRanking())
    assert note is not None
    assert note.startswith("12.3% of the targets were in the user's history: no list without seen items can contain")
    assert note.endswith("--protocol.filter_seen false")
    assert note_on_repeats(0.123, FullRanking(filter_seen=False)) is None
    assert note_on_repeats(0.0, FullRanking()) is None
