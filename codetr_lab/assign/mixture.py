"""Two Gaussians fitted to each of many small sets of numbers at once, by expectation maximisation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TOLERANCE = 1e-3
"""A row is done when its mean log-likelihood gains less than this in a step (scikit-learn's default)."""
STEPS = 100
FLOOR = 1e-6
"""Added to the variances, so that no Gaussian collapses on one number (scikit-learn's default)."""


@dataclass(frozen=True)
class Mixture:
    """Row by row two Gaussians: `weight`, `mean` and `variance`, each (2,N); the first one started at the minimum."""

    weight: Array
    mean: Array
    variance: Array

    def log_joint(self, values: Array) -> Array:
        """(2,N,K): log of weight times density of both Gaussians at (N,K) values."""
        scale = np.log(self.weight) - 0.5 * np.log(2 * math.pi * self.variance)
        return scale[..., None] - (values - self.mean[..., None]) ** 2 / (2 * self.variance[..., None])


def fit(values: Array, valid: NDArray[np.bool_]) -> Mixture:
    """Fit two Gaussians to the valid values of every row.

    Start as in PAA: one Gaussian at the row's minimum, one at its maximum, unit variances, equal weights. The result
    is that of scikit-learn's `GaussianMixture` from this start.

    Args:
        values: (N,K); what is not valid may be anything finite.
        valid: (N,K); at least one per row.
    """
    ends = [np.where(valid, values, np.inf).min(1), np.where(valid, values, -np.inf).max(1)]
    now = Mixture(np.full((2, len(values)), 0.5), np.stack(ends), np.ones((2, len(values))))
    number, bound, active = valid.sum(1), np.full(len(values), -np.inf), np.ones(len(values), bool)
    for _ in range(STEPS):
        joint = now.log_joint(values)
        density = np.logaddexp(*joint)
        share = np.exp(joint - density) * valid  # how far a Gaussian answers for a value
        total = share.sum(-1) + 10 * np.finfo(np.float64).eps
        mean = (share * values).sum(-1) / total
        variance = (share * (values - mean[..., None]) ** 2).sum(-1) / total + FLOOR
        new = Mixture(total / total.sum(0), mean, variance)
        now = Mixture(
            np.where(active, new.weight, now.weight), np.where(active, new.mean, now.mean),
            np.where(active, new.variance, now.variance),
        )  # fmt: skip
        likelihood = (density * valid).sum(1) / number
        active &= np.abs(likelihood - bound) >= TOLERANCE
        bound = likelihood
        if not active.any():
            break
    return now
