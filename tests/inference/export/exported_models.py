"""Models to export, and an export's folder as a consumer sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import seqrec.models
from seqrec.data.event_columns import EventColumn
from seqrec.encoders import SequenceEncoder
from seqrec.encoders.event_time import EventTime
from seqrec.encoders.layers import Tensors
from seqrec.models import SequentialRecommender
from seqrec.types import History, RaggedItems, SequenceBatch

NUM_ITEMS, MAX_LENGTH = 30, 50
ENCODERS = {
    "GRU4Rec": ("GRU4Rec", {}),
    "SASRec": ("SASRec", {"rotary": True, "num_heads": 2}),
    "SASRec-LiGR": ("SASRec", {"rotary": True, "norm": "queries", "feed_forward": "swiglu", "gated": True}),
    "HSTU": ("HSTU", {"num_heads": 2, "num_distances": 5}),
    "MambaRec": ("MambaRec", {"d_state": 4}),
    "MambaRec-mamba2": ("MambaRec", {"d_state": 4, "mixer": "mamba2"}),
    "RecMamba": ("RecMamba", {"d_state": 4}),
    "MoEMaTrRec": ("MoEMaTrRec", {"d_state": 4, "rotary": True}),
    "Samba": ("Samba", {"d_state": 4, "num_layers": 2, "window": 5}),
    "HRNN": ("HRNN", {"d_state": 4, "session_events": 5}),
}
# Without a step.
BIDIRECTIONAL = {"BERT4Rec": ("BERT4Rec", {}), "SSD4Rec": ("SSD4Rec", {"d_state": 4})}
TIME = EventTime(hour=True, weekday=True, request=True)
COLUMNS = [
    EventColumn("tab", "categorical", values=["home", "search", "share"]),
    EventColumn("watched", "numeric", mean=20.0, std=8.0),
    EventColumn("looks", "vector", width=3),
]


def build(name: str, **arguments: object) -> SequentialRecommender:
    torch.manual_seed(0)
    preset, own = (ENCODERS | BIDIRECTIONAL)[name]
    chosen = {"d_model": 8, "num_layers": 1, "max_length": MAX_LENGTH, "positions": False} | own | arguments
    return _with_vectors(getattr(seqrec.models, preset)(NUM_ITEMS, **chosen).eval())


class SumEncoder(SequenceEncoder):
    """Sums up the events; next to nothing to trace, where the encoder is not what a test is about."""

    def __init__(self, d_model: int = 8) -> None:
        super().__init__(d_model, num_layers=1, dropout=0.0, layer_norm=False)
        self.weight = torch.nn.Parameter(torch.ones(d_model))

    def forward(self, x: torch.Tensor, history: History) -> torch.Tensor:
        return x.cumsum(1) * self.weight

    def zero_state(self, batch_size: int, max_length: int, like: torch.Tensor) -> Tensors:
        return {"sum": like.new_zeros(batch_size, self.d_model)}

    def advance(self, x: torch.Tensor, valid: object, state: Tensors) -> tuple[torch.Tensor, Tensors]:
        total = state["sum"].unsqueeze(1) + x
        return total * self.weight, {"sum": total[:, 0]}


def small(**arguments: object) -> SequentialRecommender:
    """A model that is exported in a moment."""
    torch.manual_seed(0)
    chosen = {"encoder": SumEncoder(), "max_length": MAX_LENGTH, "positions": False} | arguments
    return _with_vectors(SequentialRecommender(NUM_ITEMS, **chosen).eval())


def _with_vectors(model: SequentialRecommender) -> SequentialRecommender:
    for table in (model.items, model.users):
        if table is not None:
            torch.nn.init.normal_(table.weight.detach()[1:], std=0.1)
    for weight in [] if model.column_embedding is None else model.column_embedding.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    if model.read_out is not None:
        torch.nn.init.normal_(model.read_out.out.weight.detach(), std=0.1)
    for name, weight in model.encoder.named_parameters():
        if name.endswith("gaps.weight"):
            torch.nn.init.normal_(weight.detach(), std=0.3)
    return model


def random_history(batch: int, length: int) -> History:
    generator = torch.Generator().manual_seed(length)
    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    lengths[0] = length
    item_ids = torch.randint(1, NUM_ITEMS + 1, (batch, length), generator=generator)
    return History(item_ids * (torch.arange(length) < lengths.unsqueeze(1)), lengths)


@torch.no_grad()
def last_states(model: SequentialRecommender, history: History, user_ids: list[int]) -> np.ndarray:
    seen = RaggedItems.from_rows([history.item_ids[0, :1]] * len(user_ids))
    return model.last_states(SequenceBatch(history, None, torch.tensor(user_ids), seen)).numpy()


def read_manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


class Served:
    """An export's folder as a consumer without seqrec sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)
        self.programs: dict[str, Callable[[list[np.ndarray]], list[np.ndarray]]] = {}

    def run(self, name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        program = self.manifest["programs"][name]
        outputs = [output["name"] for output in program["outputs"]]
        path = self.folder / program["file"]
        if path.suffix == ".onnx":
            if name not in self.programs:
                import onnxruntime

                self.programs[name] = onnxruntime.InferenceSession(path)
            session = self.programs[name]
            assert [x["name"] for x in program["inputs"]] == [x.name for x in session.get_inputs()]
            return dict(zip(outputs, session.run(outputs, inputs), strict=True))
        if name not in self.programs:
            self.programs[name] = torch.export.load(path).module()
        given = [
            np.load(self.folder / x["file"], mmap_mode="c") if "file" in x else inputs[x["name"]]
            for x in program["inputs"]
        ]
        with torch.no_grad():
            results = self.programs[name](*map(torch.from_numpy, given))
        return {key: x.numpy() for key, x in zip(outputs, results, strict=True)}

    def zero_state(self, batch: int, window: int) -> dict[str, np.ndarray]:
        sizes = {"batch": batch, "window": window}
        return {
            x["name"]: np.full([sizes.get(size, size) for size in x["shape"]], x["initial"], x["dtype"])
            for x in self.manifest["programs"]["step"]["inputs"]
            if x["name"].startswith("state.")
        }
