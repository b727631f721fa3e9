"""Mistakes that a newcomer makes: each is refused in one line that names what is wrong."""

from __future__ import annotations

import gzip
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import SMALL, refusal, write_config

from seqrec.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")
LOG = "user_id,item_id,timestamp\n" + "".join(f"{u},{(u + t) % 9},{t}\n" for u in range(6) for t in range(6))

# Configs with a key at a wrong place.
CONFIGS = {
    "trainer_in_model": "model:\n  class_path: GRU4Rec\n  trainer: {max_epochs: 1}\n",
    "args": "model:\n  class_path: GRU4Rec\n  args: {d_model: 8}\n",
    "no_init_args": "model: {class_path: GRU4Rec, d_model: 8}\n",
    "class": "model:\n  class: GRU4Rec\n",
    "list_as_model": "model: [GRU4Rec]\n",
    "text_as_trainer": "trainer: gpu\n",
    "top": "d_model: 8\n",
    "source_at_the_top": "source: {class_path: Table, init_args: {path: log.csv}}\n",
    "init_args_of_data": "data: {init_args: {batch_size: 3}}\n",
    "deep": "model:\n  init_args:\n    optimizer: {class_path: Adam, init_args: {learning_rate: 0.1}}\n",
    "under_fit": "fit:\n  trainer: {max_epochs: 1}\n",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, a config, a trained run, and files that are none of these."""
    folder = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(folder)
    try:
        source = {"class_path": "Table", "init_args": {"path": "log.csv"}}
        Path("log.csv").write_text(LOG)
        write_config(data=SMALL["data"] | {"source": source, "store": "stores/s"})
        main(["fit", "--config", "small.yaml"])
        Path("nohead.csv").write_text(LOG.partition("\n")[2])
        Path("notime.csv").write_text("user_id,item_id\n1,2\n1,3\n")
        Path("text.csv").write_text("dear diary, today\nnothing happened\n")
        Path("empty.csv").write_text("")
        Path("names.csv").write_text("user_id,item_id,timestamp\n")
        Path("dates.csv").write_text("user_id,item_id,timestamp\n1,2,yesterday\n")
        Path("twice.csv").write_text("user_id,user_id,timestamp\n1,2,3\n")
        Path("bytes.csv").write_bytes(b"user_id,item_id,timestamp\n\xff\xfe,1,1\n")
        Path("picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
        Path("damaged.parquet").write_bytes(b"PAR1" + bytes(40) + b"PAR1")
        Path("short.csv").write_text("user_id,item_id,timestamp\n1,2,3\n")
        Path("nested").mkdir()
        Path("bad.yaml").write_text("data: [unclosed\n")
        Path("tabs.yaml").write_text("data:\n\tmax_length: 3\n")
        Path("twice.yaml").write_text("data: {batch_size: 2}\nmodel:\n  d_model: 8\n  dropout: 0\n  d_model: 16\n")
        Path("list.yaml").write_text("- a\n- b\n")
        Path("empty.yaml").write_text("")
        Path("typo.yaml").write_text(yaml.safe_dump({"dta": {"max_length": 3}}))
        Path("block.csv").write_text("1,x\n")
        shutil.copy("runs/version_0/checkpoints/best.ckpt", "alone.ckpt")
        Path("cut.ckpt").write_bytes(Path("alone.ckpt").read_bytes()[:3000])
        content = torch.load("alone.ckpt", weights_only=True)
        torch.save({key: value for key, value in content.items() if key != "seqrec_run"}, "no_config.ckpt")
        Path("weights.ckpt").write_text("not a checkpoint")
        other = LOG.replace(",8,", ",80,")
        Path("other.csv").write_text(other)
        Path("taken").mkdir()
        Path("taken/thesis.txt").write_text("mine")
        Path("users.csv").write_text("user_id\n1\n2\n")
        torch.save(content["state_dict"], "weights.pt")
        Path("utf16.yaml").write_text("data: {batch_size: 2}\n", encoding="utf-16")
        Path("packed.yaml").write_bytes(gzip.compress(b"data: {batch_size: 2}\n"))
        os.mkfifo("pipe")
        os.symlink("gone", "link")
        Path("array.json").write_text('[{"user_id": 1, "item_id": 2}]')
        Path("database.csv").write_bytes(b"SQLite format 3" + bytes(50))
        Path("windows.yaml").write_text('data: {store: "C:\\logs"}\n')
        for name, text in CONFIGS.items():
            Path(f"{name}.yaml").write_text(text)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def inside(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    monkeypatch.setattr("sys.argv", ["seqrec"])


def table(path: str, *more: str) -> list[str]:
    return ["--data.source", "Table", "--data.source.path", path, "--data.store", f"stores/{path}", *more]


PREPARE = {
    "a file for a class": ["--data.source", "log.csv"],
    "a config without value": ["--config"],
    "a share above one": table("log.csv", "--data.source.max_bad_share", "2"),
    "text for a count": table("log.csv", "--data.filters.min_item_events", "few"),
    "an unknown time format": table("log.csv", "--data.source.time_format", "%Q"),
    "two sources' options": ["--data.source", "Synthetic", "--data.source.path", "log.csv"],
    "no users": ["--data.source", "Synthetic", "--data.source.num_users", "0"],
    "no source": [],
    "no such log": table("lgo.csv"),
    "no header": table("nohead.csv"),
    "no times": table("notime.csv"),
    "prose": table("text.csv"),
    "empty": table("empty.csv"),
    "names alone": table("names.csv"),
    "words as times": table("dates.csv"),
    "not UTF-8": table("bytes.csv"),
    "a picture": table("picture.png"),
    "a damaged table": table("damaged.parquet"),
    "an empty folder": table("nested"),
    "misspelt column": table("log.csv", "--data.source.user", "user"),
    "one column twice": table("log.csv", "--data.source.item", "user_id"),
    "a filter that is no SQL": table("log.csv", "--data.filters.event_filter", "rating >"),
    "a filter of no column": table("log.csv", "--data.filters.event_filter", "stars > 3"),
    "a filter that keeps none": table("log.csv", "--data.filters.event_filter", "item_id > 300"),
    "too few users": table("log.csv", "--data.filters.min_user_events", "100"),
    "a negative filter": table("log.csv", "--data.filters.min_user_events", "-1"),
    "a folder that is no store": [*table("log.csv"), "--data.store", "taken"],
    "a store that exists": ["--config", "small.yaml", "--data.filters.min_user_events", "2"],
    "no size": table("log.csv", "--data.memory_limit", "lots"),
    "an address without a scheme": table("log.csv", "--data.prepare_workers", "node1:8786"),
    "a pipe": table("pipe"),
    "a link to nothing": table("link"),
    "a JSON array": table("array.json"),
    "a database": table("database.csv"),
    "an empty path": table(""),
    "an option of recommend": table("log.csv", "--top_k", "5"),
    "a device": table("/dev/null"),
    "a negative size": table("log.csv", "--data.memory_limit", "-2GiB"),
    "a size beside a store": ["--config", "small.yaml", "--data.memory_limit", "nan"],
    "weights as checkpoint": ["--ckpt", "weights.pt"],
    "misspelt source": ["--data.source", "Tabel"],
    "misspelt option": table("log.csv", "--data.stroe", "x"),
}
RUN = ["--config", "small.yaml"]
FIT = {
    "a worker for each star": [*RUN, "--data.num_workers", "100000"],
    "fewer workers than none": [*RUN, "--data.num_workers", "-1"],
    "a size of batches beside tokens": [*RUN, "--data.max_tokens", "400", "--data.batch_size", "8"],
    **{f"the config {name}": [*RUN, "--config", f"{name}.yaml"] for name in CONFIGS},
    "hyperparameters as config": ["--config", "runs/version_0/hparams.yaml"],
    "a config in UTF-16": [*RUN, "--config", "utf16.yaml"],
    "a packed config": [*RUN, "--config", "packed.yaml"],
    "a pipe as config": ["--config", "pipe"],
    "an empty value": [*RUN, "--trainer.max_epochs="],
    "a typographic dash": ["\u2013-config", "small.yaml"],
    "a config without option": ["small.yaml"],
    "a root that is a file": [*RUN, "--trainer.default_root_dir", "log.csv"],
    "a callback without its argument": [*RUN, "--trainer.callbacks+=EarlyStopping"],
    "an argument of the negatives": [*RUN, "--model.loss", "SampledSoftmax", "--model.loss.num_negatives", "5"],
    "a path of Windows": ["--config", "windows.yaml"],
    "a run as model": [*RUN, "--model", "runs/version_0"],
    "an argument of the data": [*RUN, "--batch_size", "8"],
    "an argument of other libraries": [*RUN, "--epochs", "3"],
    "a precision of no name": [*RUN, "--trainer.precision", "fp8"],
    "fewer epochs than none": [*RUN, "--trainer.max_epochs", "-3"],
    "more least than most": [*RUN, "--trainer.min_epochs", "5"],
    "no device": [*RUN, "--trainer.devices", "0"],
    "a device for each star": [*RUN, "--trainer.devices", "100000"],
    "a duration": [*RUN, "--trainer.max_time", "1h"],
    "no batches to train on": [*RUN, "--trainer.limit_train_batches", "0"],
    "steps of nothing": [*RUN, "--trainer.accumulate_grad_batches", "0"],
    "validation of nothing": [*RUN, "--trainer.val_check_interval", "0"],
    "a negative norm": [*RUN, "--trainer.gradient_clip_val", "-1"],
    "a seed for each atom": [*RUN, "--seed_everything", "99999999999999999999"],
    "a width for each atom": [*RUN, "--model.d_model", "100000000"],
    "weights to resume": [*RUN, "--ckpt_path", "weights.pt"],
    "no epochs": [*RUN, "--trainer.max_epochs", "many"],
    "a logger of no name": [*RUN, "--trainer.logger", "Tensorbord"],
    "a callback of no name": [*RUN, "--trainer.callbacks+=EarlyStoping"],
    "no patience": [*RUN, "--early_stopping.patience", "-1"],
    "a mode that contradicts": [*RUN, "--checkpoint.mode", "min"],
    "resume points never": [*RUN, "--resume_points.every_minutes", "0"],
    "a feedforward of nothing": [*RUN, "--model", "SASRec", "--model.d_feedforward", "0"],
    "the model's length": [*RUN, "--model.max_length", "5"],
    "the last of no runs": ["--ckpt_path", "last", "--trainer.default_root_dir", "nested"],
    "hpc without a cluster": ["--ckpt_path", "hpc"],
    "no config of that name": ["--config", "smal.yaml"],
    "no YAML": ["--config", "bad.yaml"],
    "tabs": ["--config", "tabs.yaml"],
    "a list": ["--config", "list.yaml"],
    "a key twice": [*RUN, "--config", "twice.yaml"],
    "nothing": [],
    "a folder as config": ["--config", "nested"],
    "misspelt key": [*RUN, "--config", "typo.yaml"],
    "misspelt model": [*RUN, "--model", "SASrec"],
    "misspelt argument": [*RUN, "--model.d_modle", "8"],
    "text for a number": [*RUN, "--model.d_model", "wide"],
    "width of zero": [*RUN, "--model.d_model", "0"],
    "no layers": [*RUN, "--model.num_layers", "0"],
    "dropout of one": [*RUN, "--model.dropout", "1"],
    "states of zero": [*RUN, "--model", "MambaRec", "--model.d_state", "0"],
    "negative expansion": [*RUN, "--model", "MambaRec", "--model.expand", "-1"],
    "convolution of nothing": [*RUN, "--model", "MambaRec", "--model.d_conv", "0"],
    "heads that do not fit": [*RUN, "--model", "SASRec", "--model.num_heads", "3"],
    "negative step size": [*RUN, "--model.optimizer.lr", "-1"],
    "no number as step size": [*RUN, "--model.optimizer.lr", "nan"],
    "a class of torch as optimizer": [*RUN, "--model.optimizer", "torch.optim.Adam"],
    "Lightning's option of the optimizer": [*RUN, "--optimizer", "Adam"],
    "a batch of zero": [*RUN, "--data.batch_size", "0"],
    "a length of zero": [*RUN, "--data.max_length", "0"],
    "a GPU that is not there": [*RUN, "--trainer.accelerator", "gpu"],
    "too many validations": [*RUN, "--trainer.val_check_interval", "1000"],
    "unknown clipping": [*RUN, "--trainer.gradient_clip_val", "1", "--trainer.gradient_clip_algorithm", "l2"],
    "a negative seed": [*RUN, "--seed_everything", "-1"],
    "misspelt metric": [*RUN, "--early_stopping.monitor", "val_NDGC@10"],
    "half precision": [*RUN, "--trainer.precision", "16-true"],
    "no checkpoint": ["--ckpt_path", "runs/version_0/checkpoints/lats.ckpt"],
    "a width other than the checkpoint's": ["--ckpt_path", "runs/version_0", "--model.d_model", "16"],
    "an encoder other than the checkpoint's": ["--ckpt_path", "runs/version_0", "--model", "SASRec"],
    "another log than the checkpoint's": [
        "--ckpt_path",
        "runs/version_0",
        "--data.source.path",
        "other.csv",
        "--data.store",
        "stores/other",
    ],
    "histories too short": [*RUN, *table("short.csv")],
}
TEST = {
    "the best of no runs": ["--ckpt_path", "best", "--trainer.default_root_dir", "nested"],
    "a run of another name": ["--ckpt_path", "runs/versoin_0"],
    "text for a switch": ["--ckpt_path", "runs/version_0", "--fresh_weights", "perhaps"],
    "an unknown tie rule": ["--ckpt", "runs/version_0", "--protocol", "FullRanking", "--protocol.ties", "none"],
    "an encoder of other sizes": ["--ckpt", "runs/version_0", "--model.d_model", "4"],
    "weights as checkpoint": ["--ckpt", "weights.pt"],
    "a summary as checkpoint": ["--ckpt", "runs/version_0/summary.json"],
    "a store as checkpoint": [*RUN, "--ckpt", "stores/s"],
    "an address": ["--ckpt", "https://example.com/best.ckpt"],
    "a run without its folder": ["--ckpt", "version_0"],
    "a link as checkpoint": ["--ckpt", "link"],
    "a pipe as checkpoint": ["--ckpt", "pipe"],
    "no batches": ["--ckpt", "runs/version_0", "--trainer.limit_test_batches", "0"],
    "other settings than the store's": ["--ckpt", "runs/version_0", "--data.source.separator", ";"],
    "no checkpoint": RUN,
    "misspelt checkpoint": ["--ckpt", "runs/version_0/checkpoints/bset.ckpt"],
    "no such run": ["--ckpt", "runs/version_9"],
    "a checkpoint without its config": ["--ckpt", "no_config.ckpt"],
    "half a checkpoint": [*RUN, "--ckpt", "cut.ckpt"],
    "no checkpoint at all": [*RUN, "--ckpt", "weights.ckpt"],
    "an empty folder": ["--ckpt", "nested"],
    "a log as checkpoint": [*RUN, "--ckpt", "log.csv"],
    "another length": ["--ckpt", "runs/version_0", "--data.max_length", "12"],
    "another log": ["--ckpt", "runs/version_0", "--data.source.path", "other.csv", "--data.store", "stores/o2"],
    "misspelt protocol": ["--ckpt", "runs/version_0", "--protocol", "sasrec100"],
    "no candidates": ["--ckpt", "runs/version_0", "--protocol", "SampledRanking", "--protocol.num_negatives", "0"],
    "a protocol without its data": ["--ckpt", "runs/version_0", "--protocol", "Protocol", "--protocol.ties", "random"],
    "a split that the protocol has not": ["--ckpt", "runs/version_0", "--data.split", "LastN", "--data.split.n", "9"],
    "an unknown split": ["--ckpt", "runs/version_0", "--data.split", "Random"],
    "batches of zero": ["--ckpt", "runs/version_0", "--data.eval_batch_size", "0"],
    "misspelt option": ["--ckpt", "runs/version_0", "--traner.devices", "1"],
    "times in no order": [
        "--ckpt",
        "runs/version_0",
        "--data.split",
        "GlobalTime",
        "--data.split.test_from",
        "0.5",
        "--data.split.validation_from",
        "0.9",
    ],
    "an unknown device": ["--ckpt", "runs/version_0", "--trainer.accelerator", "quantum"],
    "results nowhere": ["--ckpt", "runs/version_0", "--results.path", "log.csv/x.parquet"],
}
CKPT = ["--ckpt", "runs/version_0/checkpoints/best.ckpt"]
TOP = ["--top_k", "3"]
RECOMMEND = {
    "a config of no file": ["--config", "nowhere.yaml"],
    "the last of no runs": [*TOP, "--ckpt", "nested", "--output", "r"],
    "a share that is no share": [*CKPT, *TOP, "--output", "r", "--shard", "one"],
    "an unknown search": [*CKPT, *TOP, "--output", "r", "--search", "Faiss"],
    "text for a switch": [*CKPT, *TOP, "--output", "r", "--filter_seen", "perhaps"],
    "nothing": [],
    "no checkpoint": ["--output", "r"],
    "misspelt checkpoint": ["--ckpt", "runs/version_0/checkpoints/bset.ckpt", "--output", "r"],
    "half a checkpoint": ["--ckpt", "cut.ckpt", "--output", "r"],
    "no checkpoint at all": ["--ckpt", "weights.ckpt", "--output", "r"],
    "no such store": [*CKPT, *TOP, "--output", "r", "--store", "stores/none"],
    "a folder that is no store": [*CKPT, *TOP, "--output", "r", "--store", "taken"],
    "lists of nothing": [*CKPT, "--output", "r", "--top_k", "0"],
    "lists longer than the catalogue": [*CKPT, "--output", "r", "--top_k", "1000000"],
    "text as length": [*CKPT, "--output", "r", "--top_k", "ten"],
    "no such input": [*CKPT, *TOP, "--output", "r", "--input", "histories.csv"],
    "prose as input": [*CKPT, *TOP, "--output", "r", "--input", "text.csv"],
    "no input's column": [*CKPT, *TOP, "--output", "r", "--input", "log.csv", "--user", "who"],
    "users alone as input": [*CKPT, *TOP, "--output", "r", "--input", "users.csv"],
    "an index as search": [*CKPT, *TOP, "--output", "r", "--search", "index.faiss"],
    "weights as checkpoint": ["--ckpt", "weights.pt", "--output", "r"],
    "a switch without value": [*CKPT, *TOP, "--output", "r", "--filter_seen"],
    "a link as output": [*CKPT, *TOP, "--output", "link"],
    "a folder as block list": [*CKPT, *TOP, "--output", "r", "--block", "nested"],
    "a file as store": [*CKPT, *TOP, "--output", "r", "--store", "log.csv"],
    "a pipe as input": [*CKPT, *TOP, "--output", "r", "--input", "pipe"],
    "a picture as block list": [*CKPT, *TOP, "--output", "r", "--block", "picture.png"],
    "no such block list": [*CKPT, *TOP, "--output", "r", "--block", "block.txt"],
    "a block list of two columns": [*CKPT, *TOP, "--output", "r", "--block", "block.csv"],
    "an output that is a file": [*CKPT, *TOP, "--output", "log.csv"],
    "an output with others' files": [*CKPT, *TOP, "--output", "taken"],
    "a share of none": [*CKPT, *TOP, "--output", "r", "--shard", "4/4"],
    "no device": [*CKPT, *TOP, "--output", "r", "--device", "tpu"],
    "tokens of zero": [*CKPT, *TOP, "--output", "r", "--max_tokens", "0"],
    "parts of zero": [*CKPT, *TOP, "--output", "r", "--part_users", "0"],
    "misspelt option": [*CKPT, *TOP, "--output", "r", "--topk", "5"],
}
EXPORT = {
    "nothing": [],
    "text as length": [*CKPT, "--output", "e", "--top_k", "ten"],
    "both verify and write": [*CKPT, "--output", "e", "--verify", "nested"],
    "a link as output": [*CKPT, "--output", "link"],
    "a run without option": ["runs/version_0"],
    "an export that is none": ["--verify", "nested"],
    "two outputs": [*CKPT, "--output", "e", "f"],
    "hpc without a cluster": ["--ckpt", "hpc", "--output", "e"],
    "no checkpoint": ["--output", "e"],
    "no output": CKPT,
    "misspelt checkpoint": ["--ckpt", "runs/version_0/checkpoints/bset.ckpt", "--output", "e"],
    "half a checkpoint": ["--ckpt", "cut.ckpt", "--output", "e"],
    "no checkpoint at all": ["--ckpt", "weights.ckpt", "--output", "e"],
    "an output that exists": [*CKPT, "--output", "taken"],
    "an output that is a file": [*CKPT, "--output", "log.csv"],
    "an output inside a file": [*CKPT, "--output", "log.csv/e"],
    "an unknown format": [*CKPT, "--output", "e", "--format", "tflite"],
    "negative lists": [*CKPT, "--output", "e", "--top_k", "-1"],
    "lists longer than the catalogue": [*CKPT, "--output", "e", "--top_k", "1000"],
    "no such store": [*CKPT, "--output", "e", "--store", "stores/none"],
    "misspelt option": [*CKPT, "--outptu", "e"],
    "text for a switch": [*CKPT, "--output", "e", "--separate_table", "maybe"],
    "an empty folder": ["--ckpt", "nested", "--output", "e"],
    "no runs": ["--ckpt", "stores", "--output", "e"],
    "a value without option": ["runs/version_0", "e", "x"],
    "an option without value": [*CKPT, "--output"],
    "a config as checkpoint": ["--ckpt", "small.yaml", "--output", "e"],
    "a log as checkpoint": ["--ckpt", "log.csv", "--output", "e"],
}
SERVE = {
    "a port in the host": [*CKPT, "--host", "127.0.0.1:8000"],
    "a URL as the host": [*CKPT, "--host", "http://localhost"],
    "a key twice": ["--config", "twice.yaml"],
    "the folder of no run": ["--ckpt", "stores"],
    "a negative port": [*CKPT, "--port", "-1"],
    "no users kept": [*CKPT, "--max_users", "0"],
    "hpc without a cluster": ["--ckpt", "hpc"],
    "no checkpoint": [],
    "misspelt checkpoint": ["--ckpt", "runs/version_0/checkpoints/bset.ckpt"],
    "half a checkpoint": ["--ckpt", "cut.ckpt"],
    "no checkpoint at all": ["--ckpt", "weights.ckpt"],
    "a port that is none": [*CKPT, "--port", "99999999"],
    "text as port": [*CKPT, "--port", "http"],
    "an open host without token": [*CKPT, "--host", "0.0.0.0"],
    "no such store": [*CKPT, "--store", "stores/none"],
    "an unknown session store": [*CKPT, "--sessions", "Postgres"],
    "a folder as token file": [*CKPT, "--token_file", "nested"],
    "an address out of range": [*CKPT, "--host", "256.1.1.1"],
    "an empty host": [*CKPT, "--host", ""],
    "a path for sessions in memory": [*CKPT, "--sessions", "InMemoryStore", "--sessions.path", "x"],
    "a file as session store": [*CKPT, "--sessions", "users.sqlite"],
    "the path of no session store": [*CKPT, "--path", "users.sqlite"],
    "an address as session store": [*CKPT, "--sessions", "redis://localhost:6379"],
    "a server that is away": [*CKPT, "--sessions", "RedisStore", "--sessions.url", "redis://:secret@127.0.0.1:1"],
    "the config of a run": ["--config", "small.yaml"],
    "a session store without place": [*CKPT, "--sessions", "SQLiteStore"],
    "sessions in a folder that is none": [*CKPT, "--sessions", "SQLiteStore", "--sessions.path", "log.csv/u.sqlite"],
    "a misspelt option": [*CKPT, "--prot", "8000"],
    "no such log": [*CKPT, "--log", "stores/none"],
    "requests of zero": [*CKPT, "--max_requests", "0"],
    "events of zero": [*CKPT, "--max_events", "0"],
    "no device": [*CKPT, "--device", "tpu"],
    "an empty folder": ["--ckpt", "nested"],
    "a log as checkpoint": ["--ckpt", "log.csv"],
    "no token file": [*CKPT, "--token_file", "nowhere.txt"],
    "an option without value": [*CKPT, "--port"],
}
# Words that say what to do, or what is allowed.
REMEDY = re.compile(
    r"\b(give|set|choose|add|allow|allowed|known|did you mean|must|expected|expects|lower|raise|make|use|leave|save|"
    r"mend|train|prepare|needs?|between|try|indent|loosen|write|move|makes one)\b|--\w|one of|columns:|`seqrec configs`"
)
COMMANDS = {"prepare": PREPARE, "fit": FIT, "test": TEST, "recommend": RECOMMEND, "export": EXPORT, "serve": SERVE}


# What else a line says.
PARTS = {
    ("prepare", "no source"): "source",
    (
        "prepare",
        "a file for a class",
    ): "is a class, not a file: 'log.csv'; did you mean --data.source Table --data.source.path log.csv?",
    ("fit", "a worker for each star"): "num_workers=100000 must be between 0 and",
    ("fit", "a size of batches beside tokens"): "add --data.max_tokens null",
    ("serve", "a port in the host"): "--port",
    ("prepare", "no header"): "header=[user_id, item_id, ..]",
    ("prepare", "no times"): "timestamp to null",
    ("fit", "no YAML"): "config bad.yaml line 2 is no YAML",
    ("fit", "tabs"): "config tabs.yaml line 2 is no YAML",
    ("fit", "a key twice"): "config twice.yaml line 5 sets d_model again, which line 3 sets: leave one out",
    (
        "fit",
        "nothing",
    ): "data.source, model are required: give --data.source and --model, here or in --config FILE; for example: ",
    ("recommend", "nothing"): "ckpt, output are required: give --ckpt and --output, here",
    ("fit", "a list"): "config list.yaml has a list",
    ("fit", "the config trainer_in_model"): "line 3: unknown key 'model.trainer'; move it to the top of the file",
    ("fit", "the config args"): "config args.yaml line 3: unknown key 'model.args'; did you mean init_args?",
    ("fit", "the config no_init_args"): "give the arguments of a class below model.init_args",
    ("fit", "the config class"): "unknown key 'model.class'; did you mean class_path?",
    ("fit", "the config list_as_model"): "model has a list: give the name of a class",
    ("fit", "the config top"): "line 1: unknown key 'd_model'; use model.init_args.d_model",
    ("fit", "the config source_at_the_top"): "use data.source",
    ("fit", "the config init_args_of_data"): "give its keys directly below data",
    ("fit", "the config deep"): "'model.init_args.optimizer.init_args.learning_rate'; did you mean lr?",
    ("fit", "the config under_fit"): "leave it out, with its keys at the top",
    ("prepare", "a link to nothing"): "is a link to gone, which is not there",
    ("prepare", "a JSON array"): "save it as JSON lines",
    ("prepare", "a database"): "this is an SQLite database",
    ("fit", "a typographic dash"): "use two hyphens: --config",
    ("fit", "a config without option"): "give the option too: --config small.yaml",
    ("fit", "a callback without its argument"): "give --trainer.callbacks.monitor",
    ("fit", "an argument of the negatives"): "or --model.loss.negatives.num_negatives",
    ("test", "a run without its folder"): "did you mean runs/version_0?",
    ("recommend", "a file as store"): "give its present folder: --store FOLDER",
    ("recommend", "a switch without value"): "give true or false",
    ("fit", "hyperparameters as config"): "--config runs/version_0/config.yaml",
    ("fit", "a run as model"): "did you mean --ckpt_path runs/version_0?",
    ("fit", "an argument of the data"): "use --data.batch_size",
    ("fit", "an argument of other libraries"): "use --trainer.max_epochs",
    ("fit", "a width for each atom"): "lower --model.d_model (100000000)",
    ("serve", "a file as session store"): "did you mean --sessions SQLiteStore --sessions.path users.sqlite?",
    ("serve", "a server that is away"): "redis://:***@127.0.0.1:1 cannot be used",
    ("serve", "the config of a run"): "leave it out: data is for the config of a run",
    (
        "test",
        "other settings than the store's",
    ): "seqrec prepare --ckpt runs/version_0 --data.source.separator ';' --overwrite true",
    ("fit", "Lightning's option of the optimizer"): "--model.optimizer, one of Adam, AdamW",
    ("fit", "misspelt metric"): "did you mean val_NDCG@10?",
    ("fit", "a GPU that is not there"): "--trainer.accelerator cpu",
    ("fit", "a width other than the checkpoint's"): "d_model=8 (here 16)",
    ("export", "an output inside a file"): "log.csv cannot be written",
    ("recommend", "an output with others' files"): "taken",
}


@pytest.mark.parametrize(
    ("command", "mistake"), [(command, mistake) for command, mistakes in COMMANDS.items() for mistake in mistakes]
)
def test_a_mistake_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], work: Path, command: str, mistake: str):
    words = COMMANDS[command][mistake]
    before = {*work.rglob("*")}
    message = refusal(capsys, command, *words)
    # A whole store of another log stays: it is used again.
    stores = [manifest.parent for manifest in work.glob("stores/*/manifest.json")]
    assert not [each for each in {*work.rglob("*")} - before if not {each, each.parent} & {*stores}]
    assert 20 < len(message) < 700, message
    assert "This is a bug" not in message
    assert "{'" not in message
    named = [part for word in words for part in (word.lstrip("-"), word.rpartition("/")[2]) if len(part) > 2]
    assert any(name in message for name in named) or re.search(r"--\w|\w=|'[\w.]+'", message), message
    assert REMEDY.search(message), message
    assert PARTS.get((command, mistake), "") in message
    assert (work / "taken" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("command", COMMANDS)
def test_there_are_twenty_mistakes(command: str):
    assert len(COMMANDS[command]) >= 20
    assert COMMANDS[command].keys() >= {mistake for of, mistake in PARTS if of == command}
