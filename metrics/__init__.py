"""Measuring generators: FID, KID, IS, precision, recall, density and coverage as pure functions, and the protocols that apply them to a network.

The pure functions are exported here. Named protocols (`fid50k_full`, `coverage`, ...) live in `metrics.registry`, detectors in
`metrics.detectors`, the passes over data and generator in `metrics.features`, result lines in `metrics.report`.
"""

from metrics.frechet_inception_distance import frechet_distance
from metrics.inception_score import inception_score
from metrics.kernel_inception_distance import kernel_distance
from metrics.prdc import compute_prdc

__all__ = ["compute_prdc", "frechet_distance", "inception_score", "kernel_distance"]
