from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from results_problems import PROTOCOL, frame, write

from seqrec.cli import main
from seqrec.errors import InputError
from seqrec.evaluation.results import Comparison, compare, comparison_text, read_results


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a"), frame(seed=1))
    write(Path("b"), frame(seed=2, chance=0.1), model="GRU4Rec")


def compared(*paths: str, **options: object) -> Comparison:
    return compare([read_results(path) for path in paths], **options)


def test_means_differences_and_intervals_are_those_of_the_users():
    found = {(e.metric, e.run): e for e in compared("a", "b", metrics=["HR@10", "NDCG@5"]).estimates}
    values = {run: read_results(run).metrics(["HR@10", "NDCG@5"]) for run in ("a", "b")}
    assert len(found) == 4
    for column, metric in enumerate(("HR@10", "NDCG@5")):
        difference = values["b"][:, column] - values["a"][:, column]
        one, two = found[metric, "a"], found[metric, "b"]
        assert one.difference is None
        for estimate, own in ((one, values["a"]), (two, values["b"])):
            assert estimate.mean == pytest.approx(own[:, column].mean(), abs=1e-12)
            spread = own[:, column].std() / 20
            assert estimate.interval == pytest.approx(
                (estimate.mean - 1.96 * spread, estimate.mean + 1.96 * spread), abs=spread / 2
            )
        change = two.difference
        assert change.mean == pytest.approx(difference.mean(), abs=1e-12)
        spread = difference.std() / 20
        assert change.interval == pytest.approx(
            (change.mean - 1.96 * spread, change.mean + 1.96 * spread), abs=spread / 2
        )
        assert change.p_value < 0.01


def test_differences_are_paired_by_user_and_not_by_row():
    write(Path("shuffled"), frame(seed=1).sample(fraction=1, shuffle=True, seed=0))
    for estimate in compared("a", "shuffled").estimates[1::2]:
        assert (estimate.difference.mean, estimate.difference.interval) == (0, (0, 0))
        assert estimate.difference.p_value == 1


def test_a_run_with_itself_twice_is_refused():
    with pytest.raises(InputError, match="a run is compared with itself: a, b, a"):
        compared("a", "b", "a")


def test_each_slice_has_its_own_users_and_means():
    rows = read_results("a").frame
    found = {e.slice: e for e in compared("a", slices=True, metrics=["HR@10"]).estimates}
    assert next(iter(found)) == "all"
    assert found["all"].users == 400
    repeated = rows.filter("repeated")
    assert found["repeated item"].users == len(repeated)
    assert found["repeated item"].users + found["new item"].users == 400
    whole = found["repeated item"].mean * len(repeated) + found["new item"].mean * (400 - len(repeated))
    assert whole / 400 == pytest.approx(found["all"].mean, abs=1e-12)


def test_a_slice_of_several_targets_judges_those_that_are_in_it():
    rows = frame(users=1, targets=2).with_columns(
        better=pl.Series([0, 400]), tied=pl.lit(0), repeated=pl.Series([True, False])
    )
    write(Path("two"), rows)
    found = {e.slice: e for e in compared("two", slices=True, metrics=["Recall@10"]).estimates}
    assert [found[name].mean for name in ("all", "repeated item", "new item")] == [0.5, 1, 0]
    assert [found[name].targets for name in ("all", "repeated item", "new item")] == [2, 1, 1]


def refuse(match: str, *paths: str, **options: object) -> None:
    with pytest.raises(InputError, match=match):
        compared(*paths, **options)


def test_results_of_two_protocols_are_refused_unless_asked_for():
    write(Path("sampled"), frame(seed=2), protocol="uniform100")
    refuse(
        f"a and sampled were judged by different protocols, {PROTOCOL} and uniform100; .*--across",
        "a",
        "sampled",
    )
    # The third run too, and not only the second.
    refuse("a and sampled were judged", "a", "b", "sampled")
    text = comparison_text(compared("a", "sampled", across_protocols=True))
    assert text.splitlines()[:3] == [
        "400 users, 400 targets, different protocols",
        f"a: SASRec, protocol {PROTOCOL}",
        "sampled: SASRec, protocol uniform100",
    ]


def test_protocols_of_one_name_with_other_settings_are_refused():
    write(Path("other"), frame(seed=2), settings={"split": "loo", "seen": "in", "seed": 3})
    refuse(f"both named {PROTOCOL}, with different seen, seed", "a", "other")


def test_another_catalogue_is_refused_even_across_protocols():
    write(Path("larger"), frame(seed=2), num_items=501)
    refuse("catalogues of 500 and 501 items", "a", "larger", across_protocols=True)


def test_other_users_and_targets_are_refused_with_how_many_differ():
    rows = frame(seed=2)
    fewer = rows[5:].with_columns(item_id=pl.when(pl.int_range(pl.len()) < 3).then(pl.lit(501)).otherwise("item_id"))
    more = pl.concat([fewer, fewer[:2].with_columns(user_id=pl.lit(10**6) + pl.int_range(2))])
    write(Path("other"), more)
    refuse("5 users are only in the first, 2 only in the second, and 3 that are in both have other", "a", "other")
    refuse("2 users are only in the first, 5 only in the second, and 3", "other", "a", across_protocols=True)


def test_a_target_more_of_a_user_is_another_target():
    write(Path("twice"), pl.concat([frame(seed=2), frame(seed=2)[:1]]))
    refuse("0 users are only in the first, 0 only in the second, and 1 that are in both", "a", "twice")


def test_ids_of_another_type_are_refused():
    write(Path("named"), frame(seed=2).with_columns(pl.col("user_id").cast(pl.String)))
    refuse("different logs: their ids differ in type", "a", "named")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 0}, "resamples=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"metrics": []}, "metrics is empty"),
        ({"metrics": ["MAP@10"]}, "unknown metric 'MAP@10'"),
        ({"confidence": 95}, "confidence=95 must lie between 0 and 1"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(options: dict[str, object], message: str):
    refuse(message, "a", "b", **options)


def test_ndcg_has_each_runs_own_normaliser():
    write(Path("cutoff"), frame(seed=1), normaliser="cutoff")
    one, two = compared("a", "cutoff", metrics=["NDCG@10"]).estimates
    assert one.mean / two.mean == pytest.approx(4.5436, abs=1e-4)


def test_the_command_prints_a_line_a_metric_and_run(capsys: pytest.CaptureFixture[str]):
    main(("compare", "a", "b"))
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"400 users, 400 targets, protocol {PROTOCOL}"
    assert out[1:3] == ["a: SASRec", "b: GRU4Rec"]
    assert "1,000 bootstrap resamples" in out[3]
    head, *lines = out[6:]
    assert head.split() == ["metric", "run", "mean", "95%", "interval", "difference", "95%", "interval", "p"]
    assert [line.split()[:2] for line in lines] == [
        [metric, run] for metric in ("HR@10", "NDCG@10", "MRR@10") for run in "ab"
    ]
    expected = compared("a", "b").estimates[1]
    low, high = expected.difference.interval
    assert lines[1].split() == [
        "HR@10",
        "b",
        *f"{expected.mean:.4f} {expected.interval[0]:.4f} to {expected.interval[1]:.4f}".split(),
        *f"{expected.difference.mean:+.4f} {low:+.4f} to {high:+.4f} {expected.difference.p_value:.4f}".split(),
    ]


def test_the_command_shows_slices_and_one_run_without_differences(capsys: pytest.CaptureFixture[str]):
    main(("compare", "a", "--slices", "true", "--metrics", "HR@5, MRR@7", "--confidence", "0.9"))
    out = capsys.readouterr().out.splitlines()
    assert out[4].split() == ["slice", "users", "metric", "run", "mean", "90%", "interval"]
    assert len(out) == 5 + 2 * (1 + 4 + 3 + 2 + 4)
    assert not any("sign-flip" in line for line in out)


def test_the_command_prints_json_with_all_digits(capsys: pytest.CaptureFixture[str]):
    main(("compare", "--json", "true", "a", "b", "--resamples", "50", "--seed", "3"))
    said = json.loads(capsys.readouterr().out)
    expected = compared("a", "b", resamples=50, seed=3)
    assert said["models"] == {"a": "SASRec", "b": "GRU4Rec"}
    assert said["protocols"] == {"a": PROTOCOL, "b": PROTOCOL}
    assert said["resamples"] == 50
    assert said["estimates"][1]["mean"] == expected.estimates[1].mean
    assert np.allclose(said["estimates"][1]["difference"]["interval"], expected.estimates[1].difference.interval)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a", "nowhere"), "error: no results at nowhere"),
        ((), "error: the argument 'runs' is required"),
        (("a", "--slics", "true"), "error: unknown argument 'slics'; did you mean slices?"),
        (("a", "sampled"), "error: a and sampled were judged by different protocols"),
    ],
    ids=str,
)
def test_the_command_refuses_in_one_line(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]):
    write(Path("sampled"), frame(seed=2), protocol="uniform100")
    with pytest.raises(SystemExit) as stop:
        main(("compare", *words))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
