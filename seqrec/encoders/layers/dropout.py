"""Dropout as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from seqrec.ops.dropout import check_share, dropout


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` by `seqrec.ops.dropout`: on a CPU random numbers come from a counter, not one by one.

    Raises:
        InputError: if the share is below 0, or not below 1.
    """

    def __init__(self, share: float) -> None:
        check_share(share)
        super().__init__(share)

    def forward(self, input: Tensor) -> Tensor:
        """Map a tensor of any shape to the same shape; the identity in evaluation."""
        return dropout(input, self.p) if self.training else input
