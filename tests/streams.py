"""Small models that are streamed, with all that a stream may read, and random events for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqrec import EventColumn, EventTime, models
from seqrec.catalogue.table import ItemTable
from seqrec.encoders import ENCODERS
from seqrec.encoders.state import State
from seqrec.models import SequentialRecommender

NUM_ITEMS = 30
STREAMED = [name for name in ENCODERS if not ENCODERS[name].bidirectional]
COLUMNS = (
    EventColumn("tab", "categorical", values=["home", "search"]), EventColumn("seconds", "numeric", mean=2.0, std=3.0),
    EventColumn("vector", "vector", width=2),
)  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "times": {"time": EventTime(hour=True, weekday=True)},
    "continuous times": {"time": EventTime("continuous", request=True)},
    "users": {"num_users": 9, "user_embedding": True},
    "columns": {"event_columns": COLUMNS},
    "bfloat16": {"item_table": ItemTable(dtype="bfloat16", bias=True)},
}


def make_model(encoder: str, **settings: Any) -> SequentialRecommender:
    torch.manual_seed(0)
    rotary = {"rotary": True} if encoder in ("SASRec", "MoEMaTrRec") else {}
    found: Any = getattr(models, encoder)
    model: SequentialRecommender = found(
        NUM_ITEMS, d_model=16, num_layers=2, max_length=5, positions=False, **rotary, **settings
    )
    return model.eval()


def random_events(users: int, number: int, draws: torch.Generator) -> dict[str, Any]:
    """Events of some users; other models ignore what they do not read."""
    return {
        "item_ids": torch.randint(1, NUM_ITEMS + 1, (users,), generator=draws),
        "user_ids": torch.arange(users) % 9,
        "timestamps": 1_000_000 + 5000 * number + torch.randint(0, 5000, (users,), generator=draws),
        "features": {
            "tab": torch.randint(0, 3, (users,), generator=draws),
            "seconds": torch.randn(users, generator=draws).masked_fill(torch.arange(users) == 1, torch.nan),
            "vector": torch.randn(users, 2, generator=draws),
        },
    }


def assert_same(found: tuple[Tensor, State], expected: tuple[Tensor, State], *, atol: float = 1e-6) -> None:
    """Compare outputs and states, which a batch of another size rounds differently."""
    tolerance: dict[str, Any] = {"rtol": 10 * atol, "atol": atol}
    torch.testing.assert_close(found[0], expected[0], **tolerance)
    assert found[1].tensors.keys() == expected[1].tensors.keys()
    for name, x in expected[1].tensors.items():
        torch.testing.assert_close(found[1].tensors[name], x, msg=name, **tolerance)
