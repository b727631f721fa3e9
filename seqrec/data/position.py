"""Position within an epoch, which lets a run resume, also with another number of processes."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

from seqrec.data.sampler import BatchSampler, TrainedSegment
from seqrec.errors import InputError
from seqrec.specs import with_defaults

# Settings that may differ between the jobs of one run: the rest of an epoch is split anew.
RESIZABLE = ("world_size", "batch_size", "max_tokens")


class EpochPosition:
    """The part of an epoch that is done, and the settings of the jobs that did it."""

    def __init__(self) -> None:
        self._epoch = 0
        self._segments: tuple[TrainedSegment, ...] = ()
        self._counted = 0

    def state(self, epoch: int, batches: int, order: dict[str, Any]) -> dict[str, Any]:
        """Return the position as plain values, for a checkpoint."""
        here = epoch == self._epoch
        return {
            "epoch": epoch,
            "batch": batches - self._counted if here else batches,
            "legs": [list(astuple(segment)) for segment in self._segments] if here else [],
            "order": order,
        }

    def resume(self, sampler: BatchSampler, state: dict[str, Any], order: dict[str, Any]) -> int:
        """Let this job's sampler yield the rest of a checkpoint's epoch, given the values of `state` and this job's
        order.

        Returns:
            Number of batches that count as done, out of `len(sampler)`.

        Raises:
            InputError: if the checkpoint is in the middle of an epoch that would have other windows or another order
                now.
        """
        segments, steps = tuple(TrainedSegment(*values) for values in state.get("legs", [])), state["batch"]
        was = {name: with_defaults(value, order.get(name)) for name, value in state["order"].items()}
        if steps or segments:
            changed = [name for name in order if name not in RESIZABLE and was.get(name) != order[name]]
            if changed:
                before, now = was.get(changed[0]), order[changed[0]]
                raise InputError(
                    f"the checkpoint lies in the middle of an epoch that was ordered with {changed[0]}={before}; now "
                    f"it is {now}, and some users would be seen twice or not at all: resume with {before}, or from an "
                    "epoch's end"
                )
            if steps and any(was[name] != order[name] for name in RESIZABLE):
                segments, steps = (*segments, TrainedSegment(steps, *(was[name] for name in RESIZABLE))), 0
        sampler.set_epoch(state["epoch"])
        done = sampler.resume(segments, steps)
        self._epoch, self._segments, self._counted = state["epoch"], segments, done - steps
        return done


def count_as_done(counts: Any, done: int, *, limit: float) -> None:
    """Adapt a trainer's counts of an epoch's batches, so that `done` are ready, to a job of another size.

    Raises:
        InputError: if the epoch has a limit, which leaves open the number of remaining batches.
    """
    moved = done - counts.ready
    if moved and limit != 1.0:
        raise InputError(
            f"limit_train_batches={limit} and a checkpoint of a job of another size do not go together: take out the "
            "limit, or resume with as many processes and with the same batches as before"
        )
    for name in ("ready", "started", "processed", "completed"):
        setattr(counts, name, getattr(counts, name) + moved)
