"""What exported programs say, beside the models they are of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_models import (
    COLUMNS,
    ENCODERS,
    MAX_LENGTH,
    NUM_ITEMS,
    TIME,
    Served,
    build,
    last_states,
    random_history,
    small,
)

from seqrec import __version__
from seqrec.catalogue.table import ItemTable
from seqrec.inference.export import export
from seqrec.inference.export.formats import write
from seqrec.inference.export.programs import one_step
from seqrec.inference.export.tables import model_tables
from seqrec.models import SequentialRecommender

pytestmark = pytest.mark.process

Export = Callable[[str], tuple[SequentialRecommender, Served]]
# The others take minutes with the rest: pytest -m slow tests/inference/export
QUICK = ("SASRec", "MambaRec")
every_encoder = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS]
)


def check_steps(model: SequentialRecommender, served: Served, events: int, tolerance: float) -> None:
    """Two users' events one by one, each state going on from what was returned."""
    generator = torch.Generator().manual_seed(0)
    item_ids = torch.randint(1, NUM_ITEMS + 1, (2, events), generator=generator)
    state, remembered = model.init_state(2), served.zero_state(2, MAX_LENGTH)
    for event in range(events):
        expected, state = model.step(item_ids[:, event], state)
        outputs = served.run("step", item_ids=item_ids[:, event].numpy(), **remembered)
        error = np.abs(outputs["states"] - model.to_scoring_space(expected).numpy()).max()
        assert error <= tolerance, f"event {event}: {error}"
        remembered = {name: outputs[f"next_{name}"] for name in remembered}
    for name, x in state.tensors.items():
        np.testing.assert_allclose(remembered[f"state.{name}"], x.numpy(), rtol=0, atol=tolerance)


@every_encoder
def test_onnxruntimes_steps_are_the_models_over_a_thousand_events(name: str, served: Export):
    check_steps(*served(name), events=1000, tolerance=1e-4)


@pytest.mark.parametrize("form", ["onnx", pytest.param("torch", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [name if name == "MambaRec" else pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS]
)
def test_steps_with_times_and_columns_are_the_models_over_a_thousand_events_and_can_be_asked_later(
    name: str, form: str, tmp_path: Path
):
    model = build(name, time=replace(TIME, in_mixers=name in ("SASRec", "MoEMaTrRec")), event_columns=COLUMNS)
    export(model, tmp_path / "out", format=form)
    served, generator = Served(tmp_path / "out"), torch.Generator().manual_seed(0)
    item_ids = torch.randint(1, NUM_ITEMS + 1, (2, 1000), generator=generator)
    timestamps = 1_600_000_000 + (2.0 ** (torch.rand(2, 1000, generator=generator) * 20)).long().cumsum(1)
    features = {
        "tab": torch.randint(0, 4, (2, 1000), generator=generator),
        "watched": torch.randn(2, 1000, generator=generator),
        "looks": torch.randn(2, 1000, 3, generator=generator),
    }
    state, remembered = model.init_state(2), served.zero_state(2, MAX_LENGTH)
    for event in range(1000):
        columns = {column: values[:, event] for column, values in features.items()}
        now = timestamps[:, event]
        at = now + 40 * (event % 7)
        states, state = model.step(item_ids[:, event], state, timestamps=now, features=columns)
        outputs = served.run(
            "step",
            item_ids=item_ids[:, event].numpy(),
            timestamps=now.numpy(),
            request_times=at.numpy(),
            **{f"column.{column}": values.numpy() for column, values in columns.items()},
            **remembered,
        )
        expected = model.to_scoring_space(model.at_request(states, now, at)).detach()
        np.testing.assert_allclose(outputs["states"], expected.numpy(), rtol=0, atol=1e-4)
        remembered = {name: outputs[f"next_{name}"] for name in remembered}
    later = now + 10**6
    asked = served.run(
        "ask", event_states=outputs["event_states"], newest_times=now.numpy(), request_times=later.numpy()
    )
    expected = model.to_scoring_space(model.at_request(states, now, later)).detach()
    np.testing.assert_allclose(asked["states"], expected.numpy(), rtol=0, atol=1e-4)


@every_encoder
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 63), (2, 1001)])
def test_onnxruntimes_full_pass_is_the_models_at_any_length(name: str, batch: int, length: int, served: Export):
    model, program = served(name)
    history = random_history(batch, length)
    outputs = program.run("full", item_ids=history.item_ids.numpy(), lengths=history.lengths.numpy())
    expected = last_states(model, history, [0] * batch)
    np.testing.assert_allclose(outputs["states"], expected, rtol=0, atol=1e-4)


def test_events_that_follow_a_history_one_by_one_lead_where_the_full_pass_leads(served: Export):
    _, program = served("MambaRec")
    history, remembered = random_history(1, 40), program.zero_state(1, MAX_LENGTH)
    for event in range(40):
        outputs = program.run("step", item_ids=history.item_ids[:, event].numpy(), **remembered)
        remembered = {name: outputs[f"next_{name}"] for name in remembered}
    full = program.run("full", item_ids=history.item_ids.numpy(), lengths=history.lengths.numpy())
    np.testing.assert_allclose(outputs["states"], full["states"], rtol=0, atol=1e-5)


def test_torchs_programs_are_the_model_when_they_are_read_again(tmp_path: Path):
    model = build("SASRec")
    export(model, tmp_path / "out", format="torch")
    program = Served(tmp_path / "out")
    check_steps(model, program, events=70, tolerance=1e-5)
    for batch, length in ((1, 1), (3, 63), (1, 333)):
        history = random_history(batch, length)
        outputs = program.run("full", item_ids=history.item_ids.numpy(), lengths=history.lengths.numpy())
        expected = last_states(model, history, [0] * batch)
        np.testing.assert_allclose(outputs["states"], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GRU4Rec", "MambaRec", "MambaRec-mamba2", "MoEMaTrRec"])
def test_torchs_programs_of_recurrences_are_the_model(name: str, tmp_path: Path):
    model = build(name)
    export(model, tmp_path / "out", format="torch")
    check_steps(model, Served(tmp_path / "out"), events=70, tolerance=1e-5)


def test_the_step_of_a_recurrence_does_not_know_the_longest_history(tmp_path: Path, served: Export):
    _, short = served("MambaRec")
    long = build("MambaRec", max_length=5000)
    tables = model_tables(long)
    inside = {name: table.rows(0, table.num_rows) for name, table in tables.items()}
    path = write(one_step(long, tables, inside, 0), tmp_path, "onnx", {})
    assert path.read_bytes() == (short.folder / "step.onnx").read_bytes()
    assert {size for x in short.manifest["programs"]["step"]["inputs"] for size in x["shape"]}.isdisjoint(
        {MAX_LENGTH, "window"}
    )


def test_the_step_of_attention_takes_its_window_from_its_state(served: Export):
    model, program = served("SASRec")
    shapes = {x["name"]: x["shape"] for x in program.manifest["programs"]["step"]["inputs"]}
    assert shapes["state.0.keys"] == ["batch", 2, "window", 4]
    narrow, item_ids = program.zero_state(1, 3), random_history(1, 9).item_ids
    for event in range(9):
        outputs = program.run("step", item_ids=item_ids[:, event].numpy(), **narrow)
        narrow = {name: outputs[f"next_{name}"] for name in narrow}
    state = model.encoder.init_state(1, max_length=3)
    for event in range(9):
        expected, state = model.step(item_ids[:, event], state)
    np.testing.assert_allclose(outputs["states"], expected.numpy(), rtol=0, atol=1e-5)


def test_the_manifest_says_what_a_consumer_must_know(served: Export):
    _, program = served("SASRec")
    said = program.manifest
    assert (said["seqrec"], said["format"], said["model"]) == (__version__, "onnx", "SASRec")
    assert (said["padding_id"], said["num_items"], said["max_length"]) == (0, NUM_ITEMS, MAX_LENGTH)
    assert said["encoder"]["init_args"]["rotary"]
    full, step = said["programs"]["full"], said["programs"]["step"]
    assert [(x["name"], x["dtype"], x["shape"]) for x in full["inputs"]] == [
        ("item_ids", "int64", ["batch", "length"]),
        ("lengths", "int64", ["batch"]),
    ]
    assert [(x["name"], x["dtype"], x["shape"]) for x in step["outputs"]] == [
        ("states", "float32", ["batch", 8]),
        ("next_state.0.keys", "float32", ["batch", 2, "window", 4]),
        ("next_state.0.values", "float32", ["batch", 2, "window", 4]),
        ("next_state.0.num_events", "int64", ["batch"]),
    ]
    assert full["longest_history"] is None
    assert step["window"] == MAX_LENGTH
    assert 0 <= full["largest_difference"] <= 1e-4


def test_nothing_in_the_files_says_where_they_were_made(served: Export):
    folder = served("MambaRec")[1].folder
    for file in folder.glob("*.onnx"):
        assert b".py" not in file.read_bytes()


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_separate_tables_of_users_items_and_candidates_are_read_from_their_files(form: str, tmp_path: Path):
    table = ItemTable(separate_output=True, bias=True, temperature=0.5, dtype="bfloat16")
    model = small(positions=True, user_embedding=True, num_users=4, item_table=table)
    folder = tmp_path / "out"
    said = export(model, folder, format=form, separate_table=True)
    program, history = Served(folder), random_history(3, 33)
    given = {"item_ids": history.item_ids.numpy(), "lengths": history.lengths.numpy()}
    outputs = program.run("full", user_ids=np.array([0, 2, 4]), **given)
    expected = last_states(model, history, [0, 2, 4])
    np.testing.assert_allclose(outputs["states"], expected, rtol=0, atol=1e-5)
    candidates = np.load(folder / "candidates.npy", mmap_mode="r")
    scores = model.scorer().score_chunk(torch.from_numpy(expected), 1, NUM_ITEMS)
    np.testing.assert_allclose(outputs["states"] @ candidates[1:].T, scores.detach(), rtol=0, atol=1e-4)
    # What the files hold is what is read: two items of one vector are one history.
    items = np.lib.format.open_memmap(folder / "items.npy", "r+")
    assert items[7].tobytes() not in (folder / said["programs"]["full"]["file"]).read_bytes()
    items[5] = items[9]
    items.flush()
    given = {"item_ids": np.array([[5], [9]]), "lengths": np.array([1, 1])}
    same = Served(folder).run("full", user_ids=np.array([0, 0]), **given)["states"]
    np.testing.assert_array_equal(same[0], same[1])


def test_programs_find_the_best_items_where_they_are_asked_to(tmp_path: Path):
    model = small(item_table=ItemTable(temperature=0.1, bias=True))
    said = export(model, tmp_path / "out", top_k=4)
    assert said["tables"]["items"]["file"] is None
    history = random_history(3, 20)
    outputs = Served(tmp_path / "out").run("full", item_ids=history.item_ids.numpy(), lengths=history.lengths.numpy())
    states = torch.from_numpy(last_states(model, history, [0] * 3))
    best = model.scorer().top_k(states, 4, torch.zeros(3, dtype=torch.int64))
    np.testing.assert_array_equal(outputs["best_items"], best.item_ids)
    np.testing.assert_allclose(outputs["best_scores"], best.scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("max_length", [1, 2])
def test_very_short_histories_are_exported(max_length: int, tmp_path: Path):
    model = build("SASRec", positions=True, max_length=max_length)
    said = export(model, tmp_path / "out", format="torch")
    assert said["programs"]["full"]["longest_history"] == max_length
