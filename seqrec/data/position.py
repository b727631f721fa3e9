"""The place in the training order that a run goes on from, on as many ranks as before or on others."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

from seqrec.data.sampler import BatchSampler, TrainedSegment
from seqrec.errors import InputError
from seqrec.specs import with_public_paths

# What may differ from job to job of one run: an epoch's windows are dealt out anew.
RESIZABLE = ("world_size", "batch_size", "max_tokens")


class TrainingPlace:
    """How much of an epoch is trained on, and in which ways, where jobs of different size did that."""

    def __init__(self) -> None:
        self._epoch = 0
        self._legs: tuple[TrainedSegment, ...] = ()
        self._counted = 0

    def state(self, epoch: int, batches: int, order: dict[str, Any]) -> dict[str, Any]:
        """Plain values for a checkpoint.

        Args:
            epoch: The epoch that training comes to next.
            batches: Batches of it that count as done.
            order: All that the order of an epoch depends on.
        """
        here = epoch == self._epoch
        return {
            "epoch": epoch,
            "batch": batches - self._counted if here else batches,
            "legs": [list(astuple(leg)) for leg in self._legs] if here else [],
            "order": order,
        }

    def resume(self, sampler: BatchSampler, state: dict[str, Any], order: dict[str, Any]) -> int:
        """Let the sampler yield what a checkpoint's run left of its epoch.

        Args:
            sampler: Makes this job's batches.
            state: From `state`.
            order: This job's.

        Returns:
            Batches of the epoch that count as done, out of `len(sampler)`.

        Raises:
            InputError: in the middle of an epoch, one whose windows or their order would be others now.
        """
        legs, steps = tuple(TrainedSegment(*leg) for leg in state.get("legs", [])), state["batch"]
        was = with_public_paths(state["order"])
        if steps or legs:
            changed = [name for name in order if name not in RESIZABLE and was.get(name) != order[name]]
            if changed:
                before, now = was.get(changed[0]), order[changed[0]]
                raise InputError(
                    f"the checkpoint lies in the middle of an epoch that was ordered with {changed[0]}={before}; now "
                    f"it is {now}, so that users would be seen twice or not at all: resume with {before}, or from an "
                    "epoch's end"
                )
            if steps and any(was[name] != order[name] for name in RESIZABLE):
                legs, steps = (*legs, TrainedSegment(steps, *(was[name] for name in RESIZABLE))), 0
        sampler.set_epoch(state["epoch"])
        done = sampler.resume(legs, steps)
        self._epoch, self._legs, self._counted = state["epoch"], legs, done - steps
        return done


def count_as_done(counts: Any, done: int, *, limit: float) -> None:
    """Move a trainer's counts of an epoch's batches, which a job of another size counts otherwise.

    Args:
        counts: `ready`, `started`, `processed` and `completed` as they stand in the checkpoint.
        done: What `ready` shall be.
        limit: The trainer's `limit_train_batches`.

    Raises:
        InputError: the epoch has a limit, so that it is open which batches are left.
    """
    moved = done - counts.ready
    if moved and limit != 1.0:
        raise InputError(
            f"limit_train_batches={limit} and a checkpoint of a job of another size do not go together: take out the "
            "limit, or resume on as many ranks and with the batches of before"
        )
    for name in ("ready", "started", "processed", "completed"):
        setattr(counts, name, getattr(counts, name) + moved)
