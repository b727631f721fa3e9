"""Several positives a position. Shapes: M positions with a target, N positives of each."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.errors import InputError, check_at_least
from seqrec.training.losses.loss import TargetEvents
from seqrec.types import SequenceBatch


class NextTargets:
    """The next `n` targets after each event as its positives, instead of only the next event.

    The objective becomes the mean over a position's positives, and then over positions. PinnerFormer (Pancha et al.
    2022, all-action prediction) predicts a user's actions of a time to come in this way. The positions stay those whose
    next event is a target, so batches weigh the same. With a target filter, the positives are targets, too. Those after
    the end of a window are left out: its last positions have fewer.

    Args:
        n: Positives of a position, at most; at least 2.
        within: Most time between the event and a further positive, in the log's unit. None is any time. The next event
            is a positive at any time.

    Raises:
        InputError: if `n` is below 2 or `within` below 0; in training, if `within` is given and the log has no times.

    Example:
        >>> from seqrec import FullSoftmax, NextTargets
        >>> FullSoftmax(next_targets=NextTargets(5, within=86_400)).next_targets.n
        5
    """

    def __init__(self, n: int, *, within: int | None = None) -> None:
        check_at_least(2, n=n)
        if within is not None:
            check_at_least(0, within=within)
        self.n = n
        self.within = within

    def positives(self, events: TargetEvents, batch: SequenceBatch) -> Tensor:
        """Return (M, N) item ids of each position's positives, its own target first; 0 if there is none.

        Raises:
            InputError: if the batch has no times, but `within` is given.
        """
        count = len(events.targets)
        # Places ascend, and each is one of a target: the next targets are those of the next places of the same row.
        steps = torch.arange(self.n, device=events.targets.device)
        following = torch.arange(count, device=steps.device).unsqueeze(1) + steps
        inside = following < count
        following = following.clamp_max(count - 1)
        inside &= events.rows[following] == events.rows.unsqueeze(1)
        if self.within is not None:
            times, asked = batch.history.timestamps, batch.request_times
            if times is None or asked is None:
                raise InputError(
                    f"next_targets.within={self.within} needs timestamps, but the log has none; leave it out"
                )
            latest = times.flatten()[events.places] + self.within
            inside &= (asked.flatten()[events.places][following] <= latest.unsqueeze(1)) | (steps == 0)
        return events.targets[following].where(inside, 0)
