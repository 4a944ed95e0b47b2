"""Perceptual distances with gradients: features of images whose squared Euclidean distance says how different two images look.

`lpips` is LPIPS of VGG16 in StyleGAN2-ADA's file; `embedded` compares the maps inside the detector that ships with the code in the same manner.
They are not on one scale. Detectors themselves, without gradients, are `metrics.detectors`' business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F

from dnnlib import UserError
from metrics.detectors import check_detector, embedded, get_detector
from metrics.detectors.images import to_rgb_float

LARGEST_EDGE = 256  # LPIPS was made for images of about this size; larger ones are averaged down to it
EPSILON = 1e-10


@dataclasses.dataclass(frozen=True)
class PerceptualDistance:
    """A distance between images.

    Attributes:
        name: how it is called in messages.
        features: differentiable, float32 RGB [N, 3, H, W] in 0..255 -> [N, F].
    """

    name: str
    features: Callable[[torch.Tensor], torch.Tensor]

    def look(self, images: torch.Tensor) -> torch.Tensor:
        """Features [N, F] of images [N, C, H, W] in about -1..1, C = 1 to 4, seen with a shorter side of 256 at most.

        Raises:
            UserError: another number of channels.
        """
        images = to_rgb_float(images.to(torch.float32) * 127.5 + 127.5)
        if min(images.shape[2:]) > LARGEST_EDGE:
            images = F.interpolate(images, size=_with_shorter_side(images, LARGEST_EDGE), mode="area")
        return self.features(images)

    @staticmethod
    def between(seen: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Distances [N] between features [N, F]."""
        return (seen - other).square().sum(dim=1)


def perceptual_distance(spec: str, device: torch.device, log: Callable[[str], None] = print) -> PerceptualDistance:
    """The distance that --distance names.

    Args:
        spec: "lpips", "embedded", the path or URL of a copy of StyleGAN2-ADA's vgg16.pt, or "auto": lpips, or else embedded, which is then said.
        device: where it computes.
        log: told what "auto" came to where it is not lpips.

    Raises:
        UserError: LPIPS is asked for, and its network is not at hand.
    """
    if spec == "auto":
        try:
            check_detector("vgg16")
            spec = "lpips"
        except UserError as error:
            log(f"note: distances are those of the embedded detector, since LPIPS is not at hand: {_without_advice(error)}")
            spec = "embedded"
    if spec == "embedded":
        network = embedded.load_embedded(device)
        return PerceptualDistance("embedded", lambda images: embedded_maps(network, images))
    try:
        detector = get_detector("vgg16" if spec == "lpips" else spec, device, need="lpips")
    except UserError as error:
        raise UserError(f"--distance={spec}: {_without_advice(error)}; --distance=embedded needs no download") from error
    # `run` and not the detector itself, which keeps no gradients.
    return PerceptualDistance("lpips" if spec == "lpips" else f"lpips of {detector.name}", detector.run)


def _without_advice(error: UserError) -> str:
    """What went wrong, without the advice for commands that have --detector."""
    return str(error).partition("; --detector=")[0]


def embedded_maps(network: embedded.EmbeddedDetector, images: torch.Tensor) -> torch.Tensor:
    """What the embedded detector sees in every place of its layers, laid out for squared distances as LPIPS does it (Zhang et al. 2018, eq. 1).

    Every layer's channels are scaled to unit length in each place, and places are averaged. The network was made for 32x32 pixels, so
    larger images are seen with a shorter side of 32, 64, ... as far as they have so many pixels, smaller ones enlarged to 32.

    Args:
        network: the detector, on the device of the images.
        images: float32 RGB [N, 3, H, W], 0..255.

    Returns:
        float32 [N, F], differentiable; F depends on H and W only.
    """
    edge, largest = embedded.RESOLUTION, max(min(images.shape[2:]), embedded.RESOLUTION)
    rows = []
    while edge <= largest:
        seen, size = images, _with_shorter_side(images, edge)
        if images.shape[2:] != size:
            seen = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        x = F.relu(network.stem((seen / 255 - embedded.PIXEL_CENTER) / embedded.PIXEL_SCALE))
        rows.append(_unit_rows(x))
        for unit in network.trunk:
            x = unit(x)
            rows.append(_unit_rows(x))
        edge *= 2
    return torch.cat(rows, dim=1)


def _with_shorter_side(images: torch.Tensor, edge: int) -> tuple[int, int]:
    """(height, width) of images [N, C, H, W] once their shorter side is scaled to this many pixels."""
    height, width = images.shape[2:]
    shorter = min(height, width)
    return round(height * edge / shorter), round(width * edge / shorter)


def _unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Maps [N, C, H, W] with unit channel vectors as rows [N, C * H * W], such that squared distances are means over places."""
    places = x.shape[2] * x.shape[3]
    return (x * (x.square().sum(dim=1, keepdim=True) + EPSILON).rsqrt() / places**0.5).flatten(1)
