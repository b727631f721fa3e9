"""How long each cell of a grid trains, which is the same for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from seqrec.errors import InputError

KINDS = ("epochs", "seconds", "convergence")
# No cell trains longer, whatever its budget.
MOST_EPOCHS = 10_000


@dataclass(frozen=True)
class Budget:
    """The training of one cell.

    Attributes:
        kind: "epochs": so many for each; "seconds": so much wall-clock time of `fit` for each, validation included;
            "convergence": until validation NDCG@10 has not risen for so many epochs.
        amount: How many.
    """

    kind: str
    amount: int

    @staticmethod
    def parse(text: str) -> Budget:
        """Read such as "epochs=8".

        Args:
            text: Kind and amount.

        Raises:
            InputError: another form.
        """
        kind, equals, amount = text.partition("=")
        if kind not in KINDS or not equals or not amount.isdecimal() or int(amount) < 1:
            allowed = ", ".join(f"{kind}=N" for kind in KINDS)
            raise InputError(f"budget={text!r} must be one of {allowed}, with N a whole number from 1 on")
        return Budget(kind, int(amount))

    def __str__(self) -> str:
        """The form that `parse` reads."""
        return f"{self.kind}={self.amount}"

    @property
    def describe_optimizer(self) -> str:
        """What a table says of it."""
        return {
            "epochs": f"equal epochs, {self.amount} for each row",
            "seconds": f"equal wall-clock time, {self.amount:,} s of fit for each row",
            "convergence": f"to convergence, until validation NDCG@10 has not risen for {self.amount} epochs",
        }[self.kind]

    def config(self) -> dict[str, Any]:
        """The part of a run's config that keeps to it."""
        if self.kind == "convergence":
            return {"trainer": {"max_epochs": MOST_EPOCHS}, "early_stopping": {"patience": self.amount}}
        trainer: dict[str, Any] = {"max_epochs": self.amount}
        if self.kind == "seconds":
            trainer = {"max_epochs": MOST_EPOCHS, "max_time": {"seconds": self.amount}}
        return {"trainer": trainer, "early_stopping": {"patience": MOST_EPOCHS}}
