"""Inception score (Salimans et al. 2016) from class probabilities; running the classifier is `metrics.features`' work."""

from __future__ import annotations

from typing import Any

import torch

from dnnlib import UserError
from metrics.knn import as_features


def inception_score(probs: Any, num_splits: int = 10) -> tuple[float, float]:
    """exp of the mean KL divergence between p(y|x) and p(y), per contiguous split: mean and population standard deviation over the splits.

    A score lies between 1 (every row the same) and the number of classes (every row sure, all classes equally often), and no real image enters
    it: it sees neither missing variety within classes nor classes that the classifier does not know. With p(y) estimated from the rows of a
    split it is biased downwards where splits are small. The deviation is one over splits of a single set, no standard error of the mean.

    Args:
        probs: [N, classes] rows of probabilities, array or tensor of any real type, on any device; computed in float64.
        num_splits: parts of (nearly) equal size, in order.

    Returns:
        (mean, deviation).

    Raises:
        UserError: rows that are no probabilities, or fewer rows than splits.
    """
    probs = as_features(probs, "probability").to("cpu", torch.float64)
    if probs.min() < 0 or (probs.sum(dim=1) - 1).abs().max() > 1e-3:
        raise UserError("the rows given to the inception score are no probabilities; each must be non-negative and sum to 1")
    if not 1 <= num_splits <= len(probs):
        raise UserError(f"{len(probs)} rows cannot be cut into {num_splits} splits; every split needs at least one row")
    scores = []
    for split in range(num_splits):
        part = probs[split * len(probs) // num_splits : (split + 1) * len(probs) // num_splits]
        # xlogy is 0 at 0, so a class that never occurs adds nothing.
        divergence = torch.special.xlogy(part, part) - torch.special.xlogy(part, part.mean(dim=0, keepdim=True))
        scores.append(divergence.sum(dim=1).mean().exp())
    scores = torch.stack(scores)
    return float(scores.mean()), float(scores.std(correction=0))
