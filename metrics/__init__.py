"""Measuring generators: FID, KID, IS, precision, recall, density, coverage, nearest distances and collision, and the protocols that apply them.

The pure functions are exported here; they take arrays or tensors of any float type, on any device, and know of no images and no network. What
is doubtful about their input is said with a `MetricWarning`. Named protocols (`fid50k_full`, `coverage`, ...) live in `metrics.registry`,
detectors in `metrics.detectors`, the passes over data and generator in `metrics.features`, result lines in `metrics.report`.
"""

from metrics.collision import collision
from metrics.frechet_inception_distance import frechet_distance, frechet_distance_of_features
from metrics.inception_score import inception_score
from metrics.kernel_inception_distance import kernel_distance
from metrics.nearest import nearest_distances
from metrics.points import MetricWarning
from metrics.prdc import compute_prdc, coverage_ceiling

__all__ = [
    "MetricWarning",
    "collision",
    "compute_prdc",
    "coverage_ceiling",
    "frechet_distance",
    "frechet_distance_of_features",
    "inception_score",
    "kernel_distance",
    "nearest_distances",
]
