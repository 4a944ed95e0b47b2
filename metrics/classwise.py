"""FID and coverage class by class, for conditional generators: a generator that is good on average may have lost single classes.

Pure functions of features and labels. Every class needs enough images of its own on both sides; gathering them is `metrics.features`' work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from dnnlib import UserError
from metrics import knn
from metrics.frechet_inception_distance import distance_of_fitted_gaussians
from metrics.prdc import compute_prdc


def class_numbers(labels: Any) -> torch.Tensor:
    """Classes [N], int64 on the CPU, of integers [N] or one-hot rows [N, C].

    Raises:
        UserError: labels that name no class, such as vectors that are not one-hot.
    """
    labels = torch.as_tensor(labels).detach().cpu()
    if labels.ndim == 1 and len(labels) and not labels.is_floating_point() and labels.min() >= 0:
        return labels.to(torch.int64)
    if labels.ndim == 2 and labels.numel() and bool(((labels == 0) | (labels == 1)).all() & (labels.sum(dim=1) == 1).all()):
        return labels.argmax(dim=1)
    found = f"{labels.dtype} of shape {list(labels.shape)}"
    raise UserError(f"figures by class need integers from 0 up [N] or one-hot rows [N, classes] as labels, found {found} that are neither")


def classwise_fid(real_rows: Any, real_labels: Any, fake_rows: Any, fake_labels: Any) -> dict[str, float]:
    """Fréchet distance (Heusel et al. 2017) between the real and the generated features of each class, their mean and the worst of them.

    The covariance of fewer images than features is rank-deficient and the distance biased upwards, the more so the fewer they are: compare such
    figures at equal numbers only. A warning says so.

    Args:
        real_rows, fake_rows: features [N, D] and [M, D], arrays or tensors.
        real_labels, fake_labels: their classes, as `class_numbers` takes them.

    Returns:
        {"_class0": ..., "_class1": ..., "_mean": ..., "_worst": ...}, the classes in rising order.

    Raises:
        UserError: features that are not finite matrices of one width, labels that do not fit them, or a class with fewer than 2 images on a side.
    """
    classes = _by_class(real_rows, real_labels, fake_rows, fake_labels, at_least=2)
    width = next(iter(classes.values()))[0].shape[1]
    smallest, number = min((min(map(len, sides)), number) for number, sides in classes.items())
    if smallest < width:
        short = sum(min(map(len, sides)) < width for sides in classes.values())
        found = f"{short} of {len(classes)} classes have fewer images than the features have dimensions ({width:,}), class {number} only {smallest:,}"
        warnings.warn(f"{found}: their FID is biased upwards and comparable at equal numbers only", stacklevel=2)
    return _figures(classes, distance_of_fitted_gaussians, worst=max)


def classwise_coverage(
    real_rows: Any, real_labels: Any, fake_rows: Any, fake_labels: Any, nearest_k: int = 3, *, device: torch.device | str | None = None
) -> dict[str, float]:
    """Coverage (Naeem et al. 2020) of each class's real images by its generated ones, their mean and the worst of them.

    Coverage depends on how many fakes there are per real image, so the larger side of a class is cut to the size of the smaller one, its first
    images kept: a perfect generator then reaches about 1 - 2^-k in every class.

    Args:
        real_rows, fake_rows: features [N, D] and [M, D], arrays or tensors.
        real_labels, fake_labels: their classes, as `class_numbers` takes them.
        nearest_k: neighbours that set the radius of a real image's ball.
        device: where distances are computed; default is the device of the features.

    Returns:
        {"_class0": ..., "_class1": ..., "_mean": ..., "_worst": ...}, the classes in rising order.

    Raises:
        UserError: features that are not finite matrices of one width, labels that do not fit them, or a class with fewer than k + 1 images on a side.
    """

    def coverage(real: torch.Tensor, fake: torch.Tensor) -> float:
        count = min(len(real), len(fake))
        return compute_prdc(real[:count], fake[:count], nearest_k, device=device)["coverage"]

    return _figures(_by_class(real_rows, real_labels, fake_rows, fake_labels, at_least=nearest_k + 1), coverage, worst=min)


def _by_class(
    real_rows: Any, real_labels: Any, fake_rows: Any, fake_labels: Any, at_least: int
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """{class: (real rows, fake rows)} in rising order, each side with at least `at_least` rows."""
    sides = []
    for name, rows, labels in (("real", real_rows, real_labels), ("fake", fake_rows, fake_labels)):
        rows, numbers = knn.as_features(rows, name), class_numbers(labels)
        if len(rows) != len(numbers):
            raise UserError(f"there are {len(rows):,} {name} features and {len(numbers):,} labels; each feature needs its label")
        sides.append((rows, numbers))
    (real, real_numbers), (fake, fake_numbers) = sides
    if real.shape[1] != fake.shape[1]:
        raise UserError(f"real features have {real.shape[1]} dimensions and fake features {fake.shape[1]}; both must come from one detector")
    classes = {}
    for number in torch.cat([real_numbers, fake_numbers]).unique().tolist():
        chosen = [(numbers == number).nonzero().squeeze(1) for _, numbers in sides]
        if min(map(len, chosen)) < at_least:
            found = f"class {number} has {len(chosen[0]):,} real and {len(chosen[1]):,} generated images"
            raise UserError(f"{found}; figures by class need at least {at_least} of each, so use more images or leave the class out")
        classes[number] = real[chosen[0].to(real.device)], fake[chosen[1].to(fake.device)]
    return classes


def _figures(
    classes: dict[int, tuple[torch.Tensor, torch.Tensor]],
    figure: Callable[[torch.Tensor, torch.Tensor], float],
    worst: Callable[[Iterable[float]], float],
) -> dict[str, float]:
    figures = {f"_class{number}": figure(*sides) for number, sides in classes.items()}
    return figures | {"_mean": sum(figures.values()) / len(figures), "_worst": worst(figures.values())}
