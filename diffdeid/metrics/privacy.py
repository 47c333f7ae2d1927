"""How well people are recognised: verification and identification, from cosines between probes and a gallery.

Terms are those of ISO/IEC 19795-1. A genuine pair is a probe and a photo of the same person, an impostor pair one of different
people. FAR is the share of impostors accepted at a threshold, TPR that of genuine pairs. Scores are cosines `(n, p)` of n probes
to p people; `own` `(n,)` is the column of each probe's person.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000


def person_scores(probes: np.ndarray, gallery: np.ndarray, people: list[str]) -> tuple[np.ndarray, list[str]]:
    """Largest cosine of each probe to each person.

    Args:
        probes: unit embeddings `(n, d)`.
        gallery: unit embeddings `(m, d)`.
        people: m names, whom the gallery shows.

    Returns:
        Scores `(n, p)` and the people of their columns.
    """
    columns = list(dict.fromkeys(people))
    cosines, names = probes @ gallery.T, np.array(people)
    return np.stack([cosines[:, names == person].max(1) for person in columns], axis=1), columns


def genuine_and_impostor(scores: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cosines of genuine pairs, `(n,)`, and of impostor pairs, `(n * (p - 1),)`."""
    genuine = np.zeros_like(scores, bool)
    genuine[np.arange(len(own)), own] = True
    return scores[genuine], scores[~genuine]


def ranks(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The rank `(n,)` of the right person, 1 being first; ties share the better rank."""
    return 1 + (scores > scores[np.arange(len(own)), own][:, None]).sum(1)


def threshold_at(impostor: np.ndarray, far: float) -> float:
    """The cosine above which a share `far` of impostor pairs lies."""
    return float(np.quantile(impostor, 1 - far))


def equal_error_rate(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """The rate at which as many impostors are accepted as genuine pairs are refused; 0.5 when they cannot be told apart."""
    thresholds, others = np.sort(genuine), np.sort(impostor)
    refused = np.arange(len(thresholds)) / len(thresholds)
    accepted = 1 - np.searchsorted(others, thresholds) / len(others)
    crossing = np.argmin(np.abs(accepted - refused))
    return float((accepted[crossing] + refused[crossing]) / 2)


def bootstrap(statistic: Callable[[np.ndarray], float], count: int) -> tuple[float, float]:
    """95 % percentile interval (Efron 1979), with fixed randomness.

    Args:
        statistic: takes the indices `(count,)` of drawn probes.
        count: number of probes.
    """
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(count, size=count)) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def chance(statistic: Callable[[np.ndarray], float], own: np.ndarray) -> tuple[float, float, float]:
    """Mean, 2.5 % and 97.5 % quantiles of a statistic where nothing leaks: with the probes' people permuted, fixed randomness.

    Args:
        statistic: takes the columns `(n,)` of the people that the probes are said to show.
        own: `(n,)`, whom they show.
    """
    rng = np.random.default_rng(1)
    values = [statistic(rng.permutation(own)) for _ in range(RESAMPLES)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(np.mean(values)), float(low), float(high)
