from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grid_runs import USERS, write_run

from seqrec import models
from seqrec.cli import main
from seqrec.data.report_table import Entry, ReportTable
from seqrec.errors import InputError, MissingInputError
from seqrec.evaluation.results import read_results
from seqrec.evaluation.results.intervals import sign_flip_p_values
from seqrec.experiments.grid import Cell
from seqrec.experiments.grid.result import read_grid, result_of, write_result
from seqrec.experiments.report import figures, report
from seqrec.experiments.report.figures import quality_figure
from seqrec.experiments.report.rows import read_logs


def add_cell(
    root: Path, length: int, model: str, ablation: str = "", seed: int = 0, *, hits: float = 0.5, **run: Any
) -> Path:
    """Write the result of a cell whose model ranks about so many of the targets among the ten best; return its file."""
    cell = Cell("log_a", length, model, ablation, seed)
    place = root / "cells" / cell.place
    number = sum(map(ord, f"{length}{model}{ablation}{seed}"))
    write_run(place, **{"model": model, "hits": hits, "seed": number, "seconds": 10.0 * (seed + 1)} | run)
    content = result_of(place, cell) | {"budget": "epochs=4", "made_by": "seqrec benchmark paper --data log_a"}
    file = root / "results" / f"{cell.place}.json"
    write_result(file, content)
    return file


def make_grid(tmp_path: Path) -> Path:
    for length in (20, 40):
        add_cell(tmp_path, length, "Popularity", hits=0.1)
        for seed in (0, 1):
            add_cell(tmp_path, length, "SASRec", seed=seed, hits=0.4)
            add_cell(tmp_path, length, "MambaRec", seed=seed, hits=0.9)
    add_cell(tmp_path, 40, "MambaRec", "no_positions", hits=0.5)
    return tmp_path


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    return make_grid(tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid with its report, which takes seconds to draw and is only read."""
    folder = make_grid(tmp_path_factory.mktemp("grid"))
    report(str(folder))
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not drawn into files, which takes seconds."""
    monkeypatch.setattr(figures, "save", lambda *_: None)


def ndcg(root: Path, length: int, model: str, seeds: int = 2) -> np.ndarray:
    """(U,) NDCG@10 of each user, straight from the ranks, mean over seeds."""
    better = [
        read_results(root / f"cells/log_a/{length}/{model}/seed_{seed}").frame["better"].to_numpy()
        for seed in range(seeds)
    ]
    return np.where(np.array(better) < 10, 1 / np.log2(np.array(better) + 2.0), 0).mean(0)


def table_rows(text: str, title: str) -> list[list[str]]:
    """Rows of a table of Markdown below its title."""
    lines = text[text.index(f"### {title}") :].splitlines()[2:]
    table = [line for line in lines[: lines.index("")] if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_figures_of_the_quality_table_are_those_of_the_ranks(reported: Path):
    text = (reported / "report" / "report.md").read_text()
    rows = table_rows(text, "log_a: quality by history length")
    assert [row[:2] for row in rows[:3]] == [["20", "Popularity"], ["20", "SASRec"], ["20", "MambaRec"]]
    for row in rows:
        expected = ndcg(reported, int(row[0]), row[1], 1 if row[1] == "Popularity" else 2)
        assert float(row[5].strip("*†")) == pytest.approx(expected.mean(), abs=5.1e-5)
        low, high = map(float, row[6].split(" to "))
        # A normal interval and the bootstrap's agree on so many users to a tenth or two of their width.
        half = 1.96 * expected.std(ddof=1) / USERS**0.5
        assert abs(low - (expected.mean() - half)) < 0.4 * half
        assert abs(high - (expected.mean() + half)) < 0.4 * half
        best = row[1] == "MambaRec"
        assert row[5].startswith("**") == best
        assert row[5].endswith("†**") == best
        assert row[8:] == (["1", "", "", "", ""] if row[1] == "Popularity" else ["2", "4", "80", "60", "no"])
    first, both = ndcg(reported, 20, "SASRec", 1).mean(), ndcg(reported, 20, "SASRec").mean()
    seeds = [first, 2 * both - first]
    assert float(rows[1][7]) == pytest.approx(np.std(seeds, ddof=1), abs=5.1e-5)


def test_the_best_is_tested_against_the_second_user_by_user(reported: Path):
    text = (reported / "report" / "report.md").read_text()
    difference = (ndcg(reported, 20, "MambaRec") - ndcg(reported, 20, "SASRec"))[:, None]
    p_value = sign_flip_p_values(difference, resamples=2000, seed=0)[0]
    assert f"NDCG@10 at 20: MambaRec over SASRec, p = {p_value:.4f}" in text


def test_rows_that_differ_by_chance_are_not_marked(tmp_path: Path, undrawn: None):
    for model in ("SASRec", "MambaRec"):
        add_cell(tmp_path, 20, model, hits=0.5)
    report(str(tmp_path))
    text = (tmp_path / "report" / "report.md").read_text()
    assert "**" in text
    assert "†**" not in text


def test_costs_and_ablations_stand_in_tables_of_their_own(reported: Path):
    text = (reported / "report" / "report.md").read_text()
    costs = table_rows(text, "log_a: costs by history length")
    assert [row[1] for row in costs] == ["SASRec", "MambaRec"] * 2
    # Seeds took 10 and 20 seconds, and 4 epochs each.
    assert costs[0][2:] == ["1,000", "1,000", "1,000", "200", "15.0", "3.8", "15.0", "15.00", "75", "4", "80"]
    same, changed = table_rows(text, "log_a: ablations")
    assert (same[1], changed[1]) == ("MambaRec", "MambaRec, no_positions")
    assert float(changed[4]) == pytest.approx(float(changed[2]) - float(same[2]), abs=1.1e-4)


def test_every_table_says_how_it_was_made(reported: Path):
    text = (reported / "report" / "report.md").read_text()
    for said in (
        "Protocol `full-seenout-tiemean-loo`, 60 users",
        "Budget: equal epochs, 4 for each row",
        "Made by `seqrec benchmark paper --data log_a`",
        "Hardware: a CPU, 1 of 2 cores",
        "Versions: seqrec 0, torch 9",
    ):
        assert text.count(f"- {said}") == 3
    for name in ("quality", "costs", "ablations"):
        latex = (reported / "report" / f"{name}_log_a.tex").read_text()
        assert r"Made by seqrec benchmark paper -{}-data log\_a" in latex
        assert latex.count("{tabular}") == 2


def test_rows_of_different_budgets_are_called_so(grid: Path, undrawn: None):
    file = grid / "results/log_a/20/SASRec/seed_0.json"
    file.write_text(file.read_text().replace("epochs=4", "seconds=9"))
    report(str(grid))
    assert "Budget: rows differ: epochs=4, seconds=9" in (grid / "report" / "report.md").read_text()


def test_the_same_results_give_the_same_files(reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["report", str(reported), "--output", str(tmp_path)])
    assert "report.md, with tables as .tex and figures" in capsys.readouterr().out
    files = {path.name: path.read_bytes() for path in (reported / "report").iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert {Path(name).suffix for name in files} == {".md", ".tex", ".png", ".svg"}
    assert len(files) == 1 + 3 + 2 * 4


def test_figures_hold_every_model_and_unit(reported: Path):
    for name, words in {
        "quality": ("HR@10", "NDCG@10", "history length, events at most", "Popularity", "SASRec", "MambaRec"),
        "costs": ("training, s an epoch", "test, s", "peak memory, MiB", "SASRec"),
        "curves": ("validation NDCG@10", "updates", "MambaRec"),
    }.items():
        drawn = (reported / "report" / f"{name}_log_a.svg").read_text()
        for word in words:
            assert f">{word}<" in drawn


def test_cells_that_judged_others_are_refused(grid: Path):
    add_cell(grid, 40, "GRU4Rec", users=USERS - 1)
    with pytest.raises(InputError, match="were not tested on the same users and items by one protocol"):
        report(str(grid))


def test_a_report_of_nothing_is_refused(tmp_path: Path):
    with pytest.raises(MissingInputError, match="give a folder of seqrec benchmark paper, or of a run; if"):
        report(str(tmp_path))


def test_a_report_needs_only_the_results(tmp_path: Path, undrawn: None):
    shutil.copytree(make_grid(tmp_path / "grid") / "results", tmp_path / "kept")
    shutil.rmtree(tmp_path / "grid" / "cells")
    for folder in ("grid", "kept"):
        report(str(tmp_path / folder), output=str(tmp_path / f"report_{folder}"))
    texts = [(tmp_path / f"report_{folder}" / "report.md").read_text() for folder in ("grid", "kept")]
    assert texts[0] == texts[1]


def test_rows_whose_validation_still_rose_are_marked(tmp_path: Path, undrawn: None):
    add_cell(tmp_path, 20, "SASRec", best=(80, 0.1))
    add_cell(tmp_path, 20, "SASRec", seed=1, best=(80, 0.1), ended_by="patience")
    add_cell(tmp_path, 20, "MambaRec", best=(80, 0.1), ended_by="a callback")
    add_cell(tmp_path, 20, "GRU4Rec", best=None)
    report(str(tmp_path))
    rows = table_rows((tmp_path / "report" / "report.md").read_text(), "log_a: quality by history length")
    assert [row[-2:] for row in rows] == [["", ""], ["80", "1 of 2"], ["80", "yes"]]


def test_models_that_are_missing_at_a_length_are_named(tmp_path: Path, undrawn: None):
    add_cell(tmp_path, 20, "SASRec")
    add_cell(tmp_path, 4000, "SASRec")
    add_cell(tmp_path, 20, "GRU4Rec")
    report(str(tmp_path))
    text = (tmp_path / "report" / "report.md").read_text()
    assert "- Not run, or failed: GRU4Rec at 4,000\n" in text
    assert text.count("at 20: SASRec over GRU4Rec, p = ") + text.count("at 20: GRU4Rec over SASRec, p = ") == 2
    assert "at 4,000: " not in text


def test_one_row_is_tested_against_nothing(tmp_path: Path, undrawn: None):
    add_cell(tmp_path, 20, "SASRec")
    report(str(tmp_path))
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Best compared with second" not in text
    assert "Not run" not in text


@pytest.mark.parametrize("whole", [("SASRec", 20), ("MambaRec", 40), None], ids=str)
def test_ablations_of_models_that_failed_are_reported(tmp_path: Path, whole: tuple[str, int] | None, undrawn: None):
    add_cell(tmp_path, 20, "MambaRec", "no_positions")
    if whole is not None:
        add_cell(tmp_path, whole[1], whole[0])
    report(str(tmp_path))
    text = (tmp_path / "report" / "report.md").read_text()
    (row,) = table_rows(text, "log_a: ablations")
    assert row[:2] == ["20", "MambaRec, no_positions"]
    assert row[4:6] == ["", ""]
    assert ("quality by history length" in text) == (whole is not None)


def test_seconds_of_an_epoch_leave_out_one_that_the_budget_cut(tmp_path: Path, undrawn: None):
    # Updates at each validation, of which the last is of the cut epoch.
    for length, epochs, ends in ((20, 1, (20, 30)), (40, 0, (10,))):
        add_cell(tmp_path, length, "SASRec", epochs=epochs, steps=ends, seconds=30.0)
    report(str(tmp_path))
    rows = table_rows((tmp_path / "report" / "report.md").read_text(), "log_a: costs by history length")
    assert [row[6:8] for row in rows] == [["30.0", "20.0"], ["30.0", ""]]


def test_a_run_without_validation_is_reported(tmp_path: Path, undrawn: None):
    add_cell(tmp_path, 20, "SASRec", steps=(80,), best=None)
    (tmp_path / "cells/log_a/20/SASRec/seed_0/metrics.csv").unlink()
    report(str(tmp_path))
    assert "![curves_log_a]" in (tmp_path / "report" / "report.md").read_text()


def test_baselines_are_told_apart(tmp_path: Path):
    classes = [getattr(models, name) for name in models.__all__ if name[0].isupper()]
    names = [each.__name__ for each in classes if issubclass(each, models.Baseline) and each is not models.Baseline]
    for name in names:
        add_cell(tmp_path, 20, name)
    (log,) = read_logs(read_grid(tmp_path))
    axis = quality_figure(log).axes[0]
    marks = {bars.get_label(): bars.lines[0].get_marker() for bars in axis.containers}
    assert set(marks) == set(names)
    assert len(set(marks.values())) == len(names)


def test_signs_that_latex_reads_are_escaped():
    table = ReportTable(
        *("t", "50% of a_b & c", ("a", "b"), 1, ((Entry("x_1"), Entry("9†", bold=True)),)),
        ("`---lr 1`", r"`{a: '$x^2'} \ <|>`"),
    )
    latex = table.as_latex()
    assert r"50\% of a\_b \& c. -{}-{}-lr 1." in latex
    quote = r"\textquotesingle{}"
    assert (
        rf" \{{a: {quote}\$x\textasciicircum{{}}2{quote}\}} \textbackslash{{}} "
        r"\textless{}\textbar{}\textgreater{}.}"
    ) in latex
    assert r"x\_1 & \textbf{9$^\dagger$} \\" in latex
    assert "| x_1 | **9†** |" in re.sub(" +", " ", table.as_markdown())
