"""Ranges of the numbers that optimisers share."""

from __future__ import annotations

from seqrec.errors import InputError


def check_lr(lr: float) -> None:
    """Refuse step sizes that are not positive.

    Raises:
        InputError: `lr` is 0 or less, or not a number.
    """
    if not lr > 0:
        raise InputError(f"lr={lr} must be above 0")


def check_betas(betas: tuple[float, float]) -> None:
    """Refuse decays outside [0, 1).

    Raises:
        InputError: one of them is outside.
    """
    if not all(0 <= beta < 1 for beta in betas):
        raise InputError(f"betas={betas} must be at least 0 and below 1")


def check_eps(eps: float) -> None:
    """Refuse an `eps` that lets rows without a history divide by 0.

    Raises:
        InputError: `eps` is 0 or less, or not a number.
    """
    if not eps > 0:
        raise InputError(f"eps={eps} must be above 0")
