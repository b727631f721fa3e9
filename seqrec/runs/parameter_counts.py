"""How many numbers a model has, and where."""

from __future__ import annotations

from torch import nn

from seqrec.catalogue.table import ItemEmbedding

# The children of a recommender that hold item vectors.
ITEM_TABLES = ("items", "output_items")


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Parameters of a model, all rows of sharded tables included.

    Args:
        model: A recommender, whose `items`, `output_items` and `encoder` are known by name; others have but a total.

    Returns:
        `total`, `item_table`, `encoder` and `other`, which is the rest.
    """
    children = {name: _count(child) for name, child in model.named_children()}
    own = sum(parameter.numel() for parameter in model.parameters(recurse=False))
    total = own + sum(children.values())
    table = sum(children.get(name, 0) for name in ITEM_TABLES)
    encoder = children.get("encoder", 0)
    return {"total": total, "item_table": table, "encoder": encoder, "other": total - table - encoder}


def _count(module: nn.Module) -> int:
    if isinstance(module, ItemEmbedding):
        return (module.num_items + 1) * module.weight.shape[1]
    return sum(parameter.numel() for parameter in module.parameters())
