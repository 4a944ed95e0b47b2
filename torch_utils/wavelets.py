"""Wavelet filter taps as numbers: the sym6 low-pass filter and a filter bank made from sym2. Applying filters is not done here."""

from __future__ import annotations

import numpy as np

SYM6_CENTER = 5
"""The tap about which sym6 is nearly symmetric; where a resampled lattice has to be aligned."""

# Daubechies' least asymmetric wavelet with six vanishing moments, low-pass decomposition filter, unit energy.
_SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)

# Autocorrelation of the sym2 low-pass filter, (-1, 0, 9, 16, 9, 0, -1)/16: a half-band filter whose taps are exact in floating point.
_SYM2_HALF_BAND = np.array([-1, 0, 9, 16, 9, 0, -1]) / 16


def sym6_lowpass() -> np.ndarray:
    """The sym6 low-pass filter, float64 [12], scaled to sum 1."""
    taps = np.array(_SYM6)
    return taps / taps.sum()


def sym2_filter_bank(num_bands: int = 4) -> np.ndarray:
    """Zero-phase octave filters that add up to a unit impulse, lowest band first.

    Every octave splits the band below it by the half-band pair made of sym2 (Karras et al. 2020, "Training Generative Adversarial Networks with
    Limited Data", appendix B, image-space filtering): the low half keeps the bands so far, the high half becomes a new band.

    Args:
        num_bands: bands, at least 1.

    Returns:
        float64 [num_bands, 6 * 2^(num_bands - 1) - 5], that is 43 taps for four bands; symmetric about the middle tap.
    """
    low = _SYM2_HALF_BAND / 2
    high = low * (-1.0) ** np.arange(-3, 4)
    bank = np.ones([1, 1])
    for _ in range(num_bands - 1):
        stretched = np.zeros([len(bank), 2 * bank.shape[1] - 1])
        stretched[:, ::2] = bank
        bank = np.stack([np.convolve(band, low) for band in stretched])
        margin = (bank.shape[1] - len(high)) // 2
        bank = np.concatenate([bank, np.pad(high, margin)[np.newaxis]])
    return bank
