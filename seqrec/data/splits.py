"""Which events of a user are trained on and which are held out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from seqrec.data.store import EventStore
from seqrec.errors import InputError

Int64 = NDArray[np.int64]

STAGES = ("train", "validate", "test", "predict")


class Split(ABC):
    """How each user's events are divided between training, validation and test."""

    @abstractmethod
    def history_stops(self, store: EventStore, stage: str) -> Int64:
        """Where each user's known history ends in a stage.

        For "validate" and "test" the event at that place is the target. For "train" all targets lie before
        it. For "predict" it is the end of the log.

        Args:
            store: The events.
            stage: One of `STAGES`.

        Returns:
            (num_users,) int64, index into the store's events: history is [offsets[u], stop[u]).

        Raises:
            InputError: a user with too few events.
        """


class LeaveOneOut(Split):
    """Newest event of each user for test, the one before for validation, the rest for training.

    Kang & McAuley 2018 (SASRec), section 4.1. It judges users at different times, so events that happened
    after one user's test event are in another's training: compare with it only results that use it too.
    """

    min_events = 3

    def history_stops(self, store: EventStore, stage: str) -> Int64:
        """See `Split.history_stops`; training ends before the validation target."""
        held_out = {"train": 2, "validate": 2, "test": 1, "predict": 0}[stage]
        offsets = np.asarray(store.offsets)
        counts = np.diff(offsets)
        short = np.flatnonzero(counts < self.min_events)
        if len(short):
            (user,) = np.asarray(store.user_vocabulary.external_ids(short[:1] + 1)).tolist()
            raise InputError(
                f"{store.directory}: {len(short)} user(s) have fewer than {self.min_events} events, the first is "
                f"user {user!r} with {counts[short[0]]}; leave-one-out needs one event each to train, validate "
                f"and test: set --data.filters.min_user_events {self.min_events} to leave such users out"
            )
        return (offsets[1:] - held_out).astype(np.int64)
