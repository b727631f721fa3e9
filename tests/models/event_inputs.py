"""All encoders as models that read more of events than items, and random histories for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import seqrec.models
from seqrec.data.event_columns import EventColumn
from seqrec.encoders.event_time import EventTime
from seqrec.models import SequentialRecommender
from seqrec.types import History

ITEMS = 30
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GRU4Rec": ("GRU4Rec", {}),
    "SASRec": ("SASRec", {"rotary": True}),
    "MambaRec": ("MambaRec", {}),
    "MambaRec-mamba2": ("MambaRec", {"mixer": "mamba2"}),
    "RecMamba": ("RecMamba", {}),
    "MoEMaTrRec": ("MoEMaTrRec", {"rotary": True}),
    "Samba": ("Samba", {"window": 4}),
    "HRNN": ("HRNN", {"session_events": 4}),
    "HSTU": ("HSTU", {"num_distances": 5}),
}
ALL_TIMES = EventTime(hour=True, weekday=True, request=True)
TAB = EventColumn("tab", "categorical", values=["home", "search", "share"])
WATCHED = EventColumn("watched", "numeric", mean=20.0, std=8.0)
LOOKS = EventColumn("looks", "vector", width=3)
COLUMNS = [TAB, WATCHED, LOOKS]


def build(
    name: str = "MambaRec",
    time: EventTime | None = None,
    columns: list[EventColumn] | None = None,
    **settings: Any,
) -> SequentialRecommender:
    """A model whose times, requests and columns matter from the beginning."""
    torch.manual_seed(0)
    preset, own = ENCODERS[name]
    arguments = {"d_model": 8, "max_length": 40, "positions": False, "dropout": 0.0, "time": time} | own
    arguments |= {"event_columns": columns} | settings
    model: SequentialRecommender = getattr(seqrec.models, preset)(ITEMS, **arguments).eval()
    for part in (model.event_time, model.read_out, model.column_embedding):
        for weight in [] if part is None else part.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    for name, weight in model.encoder.named_parameters():
        if name.endswith("gaps.weight"):
            torch.nn.init.normal_(weight, std=0.3)
    return model


def random_history(lengths: list[int], seed: int = 1) -> History:
    """Events with items, times and columns, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    shape, counts = (len(lengths), max(lengths)), torch.tensor(lengths)
    valid = torch.arange(shape[1]) < counts.unsqueeze(1)
    gaps = (2.0 ** (torch.rand(shape, generator=generator) * 20)).long() - 1
    times = 1_600_000_000 + gaps.cumsum(1)
    items = torch.randint(1, ITEMS + 1, shape, generator=generator)
    features = {
        "tab": torch.randint(0, TAB.num_codes, shape, generator=generator) * valid,
        "watched": torch.randn(shape, generator=generator) * valid,
        "looks": torch.randn(*shape, LOOKS.width, generator=generator) * valid.unsqueeze(-1),
    }
    return History(items * valid, counts, times * valid, features=features)


def part_of(history: History, begin: int, end: int, rows: slice = slice(None)) -> History:
    """The events [begin, end) of some rows."""
    lengths = (history.lengths[rows] - begin).clamp(0, end - begin)
    assert history.timestamps is not None
    assert history.features is not None
    features = {name: values[rows, begin:end] for name, values in history.features.items()}
    items, times = history.item_ids[rows, begin:end], history.timestamps[rows, begin:end]
    return replace(history, item_ids=items, lengths=lengths, timestamps=times, features=features)
