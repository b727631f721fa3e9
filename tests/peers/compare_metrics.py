"""Our metrics of one SASRec beside those that RecTools and RePlay compute from its lists.

    python -m venv peers && peers/bin/pip install -r tests/peers/requirements.txt
    SEQREC_PEERS_PYTHON=peers/bin/python python tests/peers/compare_metrics.py [ml-1m.zip]

Our side ranks targets (`Protocol.judge`); theirs gets the best items of the plain product of states and item vectors,
without those that the protocol hides. Which setting is which:

| ours | RecTools | RePlay |
|---|---|---|
| `HR@K` | `HitRate(k)` | `HitRate(k)` |
| `MRR@K` | `MRR(k)` | `MRR(k)` |
| `NDCG@K`, normaliser "achievable" | `NDCG(k, divide_by_achievable=True)` | `NDCG(k)` |
| `NDCG@K`, normaliser "cutoff" | `NDCG(k)` | has none |
| `NDCG@K`, normaliser "none" | has none | has none |
| `Precision@K`, `Recall@K` | the same names | the same names |
| preset "gsasrec", "hstu" | all items as `items_to_recommend`, `filter_viewed=True` | `RemoveSeenItems` |
| preset "rectools" | `cross_validate`'s defaults with `filter_viewed=True` | |
| preset "recbole" | all items, `filter_viewed=False` | no postprocessor |

With one target a user, "achievable" and "none" are the same, and "cutoff" is their 1 / 4.5436 at K = 10.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.prepare import Filters
from seqrec.data.sources import ML1M, Source, Synthetic
from seqrec.data.splits import LastN, LeaveOneOut, Split
from seqrec.evaluation.metrics import metric_named
from seqrec.evaluation.protocols import Protocol, TrainingCounts
from seqrec.models import SASRec

CUTOFFS = (1, 5, 10)
METRICS = ("HR", "MRR", "NDCG", "Precision", "Recall")
PROTOCOLS = {
    "gsasrec": (Protocol.preset("gsasrec"), LeaveOneOut()),
    "recbole": (Protocol.preset("recbole"), LeaveOneOut()),
    "rectools": (Protocol.preset("rectools"), LeaveOneOut()),
    "three targets": (Protocol(split=LastN(3)), LastN(3)),
    "three targets, cutoff": (Protocol(normaliser="cutoff", split=LastN(3)), LastN(3)),
}


def peers_python() -> str | None:
    """Interpreter that has both packages: this one, or the one that SEQREC_PEERS_PYTHON names; None if neither."""
    if all(importlib.util.find_spec(name) for name in ("rectools", "replay")):
        return sys.executable
    return os.environ.get("SEQREC_PEERS_PYTHON")


def data_module(source: Source, split: Split, folder: Path) -> SequenceDataModule:
    """The log with histories of 50 events."""
    return SequenceDataModule(
        source, store=str(folder / "store"), split=split, max_length=50, batch_size=64, filters=Filters(7)
    )


def trained_model(data: SequenceDataModule) -> SASRec:
    """A SASRec after one epoch, in float64, where targets hardly ever share a score."""
    pl.seed_everything(0, verbose=False)
    model = SASRec(data.num_items, max_length=50, d_model=16, num_layers=1, num_heads=1)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=data)
    return model.double().eval()


@torch.no_grad()
def metrics_and_lists(
    model: SASRec, data: SequenceDataModule, protocol: Protocol
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Our metrics by name, and what the peers compute theirs from.

    Raises:
        RuntimeError: a target shares its score, so that the peers' order would be chance.
    """
    protocol = protocol.on(data.split, data.event_order)
    item_counts = data.train_item_counts()
    ours = {f"{m}@{k}": metric_named(f"{m}@{k}", protocol.normaliser) for m in METRICS for k in CUTOFFS}
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("users", "items", "scores", "target_users", "target_items")
    }
    for batch in data.test_dataloader():
        states = model.last_states(batch)
        judged = protocol.judge(states, batch, model.scorer(), TrainingCounts(torch.from_numpy(item_counts)))
        if judged.ranks.tied.any():
            raise RuntimeError("targets share their score with other items: take another seed")
        for metric in ours.values():
            metric.update(judged)
        scores = plain_scores(states, model.items.weight, batch, protocol, item_counts)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : 2 * max(CUTOFFS)]
        columns["users"].append(np.repeat(batch.user_ids.numpy(), best.shape[1]))
        columns["items"].append(best.ravel())
        columns["scores"].append(np.take_along_axis(scores, best, 1).ravel())
        columns["target_users"].append(np.repeat(batch.user_ids.numpy(), batch.held_out.counts.numpy()))
        columns["target_items"].append(batch.held_out.item_ids.numpy())
    lists = {name: np.concatenate(parts) for name, parts in columns.items()}
    return {name: float(metric.compute()) for name, metric in ours.items()}, lists


def plain_scores(states, item_vectors, batch, protocol: Protocol, item_counts: np.ndarray) -> np.ndarray:
    """(B, V) products of states and item vectors, minus infinity where an item is no candidate."""
    scores = states.numpy() @ item_vectors.detach().numpy().T
    for row, own in enumerate(scores):
        begin, end = batch.held_out.offsets[row : row + 2].tolist()
        targets = batch.held_out.item_ids[begin:end].numpy()
        kept = own[targets]
        if getattr(protocol.candidates, "trained_only", False):
            own[item_counts == 0] = -np.inf
        if protocol.filter_seen:
            begin, end = batch.seen_events.offsets[row : row + 2].tolist()
            own[batch.seen_events.item_ids[begin:end].numpy()] = -np.inf
        own[0] = -np.inf
        own[targets] = kept
    return scores


def peers_metrics(
    cases: dict[str, dict[str, np.ndarray]], python: str, folder: Path
) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics of the lists of each case by peer, by the peers' names.

    Raises:
        RuntimeError: the other interpreter fails; the message is its own.
    """
    paths = {case: str(folder / f"lists{number}.npz") for number, case in enumerate(cases)}
    for case, path in paths.items():
        np.savez(path, cutoffs=np.array(CUTOFFS), **cases[case])
    script = Path(__file__).with_name("peer_metrics.py")
    # One process for all, as importing the packages takes longer than all metrics.
    done = subprocess.run([python, str(script), *paths.values()], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{python} {script.name} failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {case: found[path] for case, path in paths.items()}


def counterpart(name: str, peer: str, normaliser: str) -> str | None:
    """What the peer calls our metric; None where it has none."""
    if not name.startswith("NDCG"):
        return name
    if peer == "RecTools":
        return f"{name}-achievable" if normaliser == "achievable" else name
    return name if normaliser == "achievable" else None


def all_cases(source: Source, folder: Path) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, np.ndarray]]]:
    """Our metrics and the lists of each of `PROTOCOLS`; one model a split."""
    metrics, lists = {}, {}
    models: dict[str, tuple[SASRec, SequenceDataModule]] = {}
    for case, (protocol, split) in PROTOCOLS.items():
        if split.id not in models:
            data = data_module(source, split, folder)
            models[split.id] = trained_model(data), data
        metrics[case], lists[case] = metrics_and_lists(*models[split.id], protocol)
    return metrics, lists


def main() -> None:
    """Print all metrics of all protocols side by side."""
    warnings.simplefilter("ignore")
    python = peers_python()
    if python is None:
        raise SystemExit("error: set SEQREC_PEERS_PYTHON to a Python with tests/peers/requirements.txt installed")
    source = ML1M(sys.argv[1]) if len(sys.argv) > 1 else Synthetic(num_users=300, num_items=100, mean_events=40)
    with tempfile.TemporaryDirectory() as name:
        metrics, lists = all_cases(source, Path(name))
        found = peers_metrics(lists, python, Path(name))
    for case, ours in metrics.items():
        protocol = PROTOCOLS[case][0]
        print(f"\n{case}: {protocol.id}")
        print(f"{'':<14}{'seqrec':>10}{''.join(f'{peer:>10}' for peer in found[case])}")
        for metric, value in ours.items():
            names = {peer: counterpart(metric, peer, protocol.normaliser) for peer in found[case]}
            cells = [f"{found[case][peer][n]:>10.6f}" if n else f"{'':>10}" for peer, n in names.items()]
            print(f"{metric:<14}{value:>10.6f}{''.join(cells)}")


if __name__ == "__main__":
    main()
