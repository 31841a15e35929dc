"""Logistic regression of standardised features: its solver, cross-validation of its strength, and its calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C; covers the best on standardised features
MIDDLE_STRENGTH = STRENGTHS[2]
MAX_STEPS = 1_000
TOLERANCE = 3e-4  # of the gradient of the mean loss


@dataclass(frozen=True)
class Linear:
    """A linear classifier on standardised features (N, D) that returns logits (N, C)."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        return ((features - self.mean) / self.scale @ self.weight.T + self.bias).astype(np.float32)

    def of_raw(self) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Weight (C, D) and bias (C,) for features that are not standardised."""
        weight = self.weight / self.scale
        return weight, self.bias - weight @ self.mean

    def calibrated(self, temperature: float, shift: NDArray[np.float32]) -> Linear:
        """The classifier whose logits are logits / temperature + shift."""
        return replace(
            self, weight=self.weight / np.float32(temperature), bias=self.bias / np.float32(temperature) + shift
        )


def fit_linear(features: NDArray[np.float32], labels: NDArray[np.integer], strength: float) -> Linear:
    """Logistic regression of labels 0..C-1 on standardised features (N, D)."""
    [linear] = fit_linears(features, labels, [strength])
    return linear


def fit_linears(features: NDArray[np.float32], labels: NDArray[np.integer], strengths: Sequence[float]) -> list[Linear]:
    """fit_linear for several strengths."""
    mean, scale = standard(features)
    points = (features - mean) / scale
    if points.shape[0] < points.shape[1]:  # the weights lie in the span of the points: solve there, exactly
        precise = points.astype(np.float64)
        sizes, vectors = np.linalg.eigh(precise @ precise.T)
        kept = sizes > 1e-9 * sizes[-1]
        sizes, basis = sizes[kept], (vectors[:, kept] / np.sqrt(sizes[kept])).astype(np.float32).T @ points
    else:
        sizes, vectors = np.linalg.eigh(points.T @ points)
        sizes, basis = np.maximum(sizes, 1e-6 * sizes[-1]), vectors.T
    inputs = np.append(points @ basis.T, np.ones((len(points), 1), np.float32), 1)
    found = []
    for strength in strengths:
        weight = _solve(inputs, np.append(sizes, len(points)), labels, strength)
        found.append(Linear(mean, scale, (weight[:, :-1] @ basis).astype(np.float32), weight[:, -1].astype(np.float32)))
    return found


def _solve(
    inputs: NDArray[np.float32], sizes: NDArray[np.floating], labels: NDArray[np.integer], strength: float
) -> NDArray[np.float32]:
    """Weights (C, J) of softmax regression on orthogonal columns (N, J) of these squared norms; the last is the bias.

    Nesterov's gradient steps, restarted when they overshoot (O'Donoghue & Candes 2015), scaled by an upper bound of the
    Hessian (Boehning 1992), which is diagonal for such inputs: several times as fast as L-BFGS on few images.
    """
    targets = np.eye(labels.max() + 1, dtype=np.float32)[labels]
    halves = 2 if targets.shape[1] == 2 else 1  # scikit-learn penalises the difference of two classes, in one vector
    penalty = np.full(len(sizes), halves / strength, np.float32)
    penalty[-1] = 0
    steps = (1 / (sizes / 2 + penalty)).astype(np.float32)
    weight = before = np.zeros((targets.shape[1], len(sizes)), np.float32)
    age = 0
    for _ in range(MAX_STEPS):
        ahead = weight + np.float32(age / (age + 3)) * (weight - before)
        logits = inputs @ ahead.T
        powers = np.exp(logits - logits.max(1, keepdims=True))
        gradient = (powers / powers.sum(1, keepdims=True) - targets).T @ inputs + penalty * ahead
        before, weight = weight, ahead - steps * gradient
        if np.abs(gradient).max() < TOLERANCE * len(inputs):
            break
        age = 0 if np.vdot(gradient, weight - before) > 0 else age + 1
    return weight


def standard(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and scale (D,) to standardise features (N, D) by; the scale of a constant feature is 1."""
    mean, scale = features.mean(0), features.std(0)
    scale[scale < 1e-6] = 1.0
    return mean, scale


def cross_validate(
    features: NDArray[np.float32],
    labels: NDArray[np.integer],
    folds: Sequence[NDArray[np.bool_]],
    strengths: Sequence[float],
) -> list[dict[str, Any]]:
    """Each strength with its accuracy and log loss (nats) on held-out images; empty without folds."""
    from scipy.special import log_softmax

    if not folds:
        return []
    parts: list[list[NDArray[np.float32]]] = [[] for _ in strengths]
    for held in folds:
        for part, linear in zip(parts, fit_linears(features[~held], labels[~held], strengths), strict=True):
            part.append(linear.logits(features[held]))
    truth, found = np.concatenate([labels[held] for held in folds]), []
    for strength, part in zip(strengths, parts, strict=True):
        logits = np.concatenate(part)
        loss = -float(log_softmax(logits, axis=1)[np.arange(len(truth)), truth].mean())
        accuracy = float((logits.argmax(1) == truth).mean())
        found.append({"strength": strength, "held_out_accuracy": accuracy, "held_out_log_loss": loss})
    return found


def best_trial(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The trial of the lowest held-out log loss; ties go to the weaker penalty."""
    return min(trials, key=lambda trial: (trial["held_out_log_loss"], -trial["strength"]))


def calibrate(
    features: NDArray[np.float32], labels: NDArray[np.integer], folds: Sequence[NDArray[np.bool_]], strength: float
) -> tuple[float, NDArray[np.float32]]:
    """(temperature, shift (C,)) that maximise the likelihood of logits / temperature + shift on held-out images.

    Bias-corrected temperature scaling (Alexandari et al. 2020), with a standard normal prior of the shift. Targets are
    smoothed by 1 / (n + 2) for n held-out images (Laplace's rule), so that separable classes do not become certain.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    parts = [fit_linear(features[~held], labels[~held], strength).logits(features[held]) for held in folds]
    logits = np.concatenate(parts).astype(np.float64)
    count, classes = logits.shape
    targets = np.full(logits.shape, 1 / (count + 2) / (classes - 1))
    targets[np.arange(count), np.concatenate([labels[held] for held in folds])] = 1 - 1 / (count + 2)

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scale, shift = np.exp(values[0]), values[1:]
        log_probabilities = log_softmax(scale * logits + shift, axis=1)
        excess = np.exp(log_probabilities) - targets
        gradient = np.concatenate([[scale * (excess * logits).sum()], excess.sum(0) + shift])
        return float(shift @ shift / 2 - (targets * log_probabilities).sum()), gradient

    found = minimize(
        loss, np.zeros(1 + classes), jac=True, method="L-BFGS-B", bounds=[(-7, 7)] + [(None, None)] * classes
    )
    return float(np.exp(-found.x[0])), found.x[1:].astype(np.float32)


def middle_strengths(count: int) -> list[float]:
    """The first `count` of STRENGTHS, from the middle outwards."""
    return sorted(STRENGTHS, key=lambda strength: abs(np.log(strength / MIDDLE_STRENGTH)))[:count]
