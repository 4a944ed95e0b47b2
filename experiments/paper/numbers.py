"""Published numbers, method by method, to set beside our own. Nothing is computed here."""

from __future__ import annotations

Figures = dict[str, dict[str, float]]  # method -> metric -> value

PAPER = "Pairing Regularization for Mitigating Many-to-One Collapse in GANs (arXiv 2604.20130)"
PACGAN = "PacGAN (arXiv 1712.04086), Table 1, with wider networks and a longer training than here"


def _prc(precision: float, recall: float, coverage: float) -> dict[str, float]:
    return {"precision": precision, "recall": recall, "coverage": coverage}


TABLE1: Figures = {
    "GAN": _prc(0.992, 0.184, 0.083),
    "GAN+R1": _prc(0.967, 0.267, 0.283),
    "GAN+Pairing": _prc(0.974, 0.494, 0.483),
    "GAN+Pairing+R1": _prc(0.969, 0.957, 0.861),
}
TABLE2: Figures = {
    "GAN": _prc(0.981, 0.754, 0.336),
    "GAN+R1": _prc(0.907, 0.948, 0.372),
    "GAN+Pairing": _prc(0.970, 0.962, 0.851),
    "GAN+Pairing+R1": _prc(0.975, 0.944, 0.841),
}
TABLE_A: Figures = {
    "GAN": _prc(0.728, 0.947, 0.218),
    "GAN+R1": _prc(0.634, 0.911, 0.314),
    "GAN+Pairing+R1": _prc(0.759, 0.940, 0.432),
    "MS-GAN+R1": _prc(0.354, 0.94, 0.255),
}
PACGAN_RING: Figures = {
    "GAN": {"modes": 6.3, "high quality": 0.982, "reverse KL": 0.45},
    "PacGAN2": {"modes": 7.9, "high quality": 0.956, "reverse KL": 0.07},
}
PACGAN_GRID: Figures = {
    "GAN": {"modes": 17.3, "high quality": 0.948, "reverse KL": 0.70},
    "PacGAN2": {"modes": 23.8, "high quality": 0.913, "reverse KL": 0.13},
}


def _with_fid(precision: float, recall: float, coverage: float, fid: float) -> dict[str, float]:
    return {**_prc(precision, recall, coverage), "FID": fid}


TABLE3: Figures = {
    "StyleGAN2": _with_fid(0.673, 0.425, 0.637, 9.219),
    "Pairing-GAN": _with_fid(0.677, 0.423, 0.731, 8.597),
    "MS-GAN(+R1)": _with_fid(0.664, 0.276, 0.46, 16.54),
}
TABLE4: Figures = {
    "StyleGAN2-ADA": _with_fid(0.635, 0.575, 0.780, 3.185),
    "Pairing-GAN-ADA": _with_fid(0.638, 0.578, 0.784, 3.123),
    "MS-GAN(+R1)-ADA": _with_fid(0.664, 0.521, 0.52, 3.158),
}
TABLE_B: Figures = {  # printed without saying at which length and with which augmentation; Table 3 but for one digit
    "StyleGAN2": _prc(0.673, 0.425, 0.637),
    "Pairing-GAN": _prc(0.677, 0.422, 0.731),
}
TABLE_C: Figures = {  # pairing weight
    "Pairing-GAN(.01)": {"precision": 0.6721, "coverage": 0.6812},
    "Pairing-GAN": {"precision": 0.6773, "coverage": 0.7313},
    "Pairing-GAN(.10)": {"precision": 0.6495, "coverage": 0.7364},
}
