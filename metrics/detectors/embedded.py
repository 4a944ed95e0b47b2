"""The embedded detector: a small CIFAR-10 classifier whose weights ship with the code, for 32x32 work and for machines without a network.

The network, its input conversion and the loading of its weights live here; MODEL_CARD.md tells what it was trained on and how good it is.
Training lives in train_embedded.py, the choice between detectors in the package itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from dnnlib import UserError
from dnnlib.json_files import parse_json
from metrics.detectors.images import to_rgb_uint8

WEIGHTS_PATH = pathlib.Path(__file__).with_name("embedded.safetensors")
FEATURE_DIM = 256
NUM_CLASSES = 10
RESOLUTION = 32
META_KEY = "pairing-gan embedded detector 1"  # the one metadata entry; its presence says that a safetensors file is meant for this network

STEM_CHANNELS = 32
STAGE_CHANNELS = (64, 192, FEATURE_DIM)  # after each halving: at 16x16, 8x8 and 4x4
PIXEL_CENTER = 0.47
PIXEL_SCALE = 0.25


class ConvUnit(nn.Module):
    """3x3 convolution, batch normalization, optional 2x2 max pooling, ReLU: [N, C, H, W] -> [N, C', H or H/2, W or W/2].

    With `norm=False` the normalization is absent and the convolution has a bias instead, which is how the trained weights are kept.
    Pooling comes after the normalization, not before, so that the affine map can be folded into the convolution whatever the sign of its scale.
    """

    def __init__(self, in_channels: int, out_channels: int, pool: bool = False, norm: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(out_channels) if norm else None
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the unit."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.pool:
            x = F.max_pool2d(x, 2)
        return F.relu(x)


class EmbeddedDetector(nn.Module):
    """A whitening 3x3 convolution, three stages of two 3x3 units, global average pooling, a linear layer: 1.5 M parameters, 116 M multiply-adds.

    Each stage pools in its first unit. The whitening convolution is fixed before training, see train_embedded.whiten. `norm=True` builds the form
    with batch normalization that training needs; `folded()` turns it into the form without that is stored and loaded.
    """

    def __init__(self, norm: bool = False):
        super().__init__()
        self.stem = nn.Conv2d(3, STEM_CHANNELS, 3, padding=1, bias=False)
        units, channels = [], STEM_CHANNELS
        for width in STAGE_CHANNELS:
            units += [ConvUnit(channels, width, pool=True, norm=norm), ConvUnit(width, width, norm=norm)]
            channels = width
        self.trunk = nn.Sequential(*units)
        self.head = nn.Linear(channels, NUM_CLASSES)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Penultimate features, averaged over the last 4x4 map, computed in float32 even under autocast; no image influences another.

        On CUDA the process-wide setting decides whether convolutions may round to TF32; switch that off for figures that are to be compared.

        Args:
            images: uint8 [N, C, H, W], 1 to 4 channels, any size (other sizes than 32x32 are resized).

        Returns:
            float32 [N, FEATURE_DIM].

        Raises:
            UserError: the images are of another type or shape.
        """
        with torch.autocast(images.device.type, enabled=False):
            return self.pooled(prepare(images))

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Class probabilities float32 [N, 10], rows summing to 1, classes in alphabetical order; `images` as in forward."""
        with torch.autocast(images.device.type, enabled=False):
            return self.head(self.pooled(prepare(images))).softmax(dim=1)

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """Features [N, FEATURE_DIM] of float images [N, 3, 32, 32] that went through `prepare`; differentiable, in the precision of the caller."""
        return self.trunk(F.relu(self.stem(x))).mean(dim=(2, 3))

    def folded(self) -> EmbeddedDetector:
        """A float32 copy in eval mode in which every batch normalization (its running statistics) is folded into the convolution before it."""
        result = _empty_detector().eval()
        result.stem.load_state_dict(self.stem.state_dict())
        result.head.load_state_dict(self.head.state_dict())
        for name, unit in self.named_modules():
            if isinstance(unit, ConvUnit):
                _fold_unit(unit, result.get_submodule(name))
        return result


def _empty_detector() -> EmbeddedDetector:
    """A folded detector on the CPU whose weights are yet to be written; unlike the constructor it draws nothing from the global generator."""
    with torch.device("meta"):
        detector = EmbeddedDetector(norm=False)
    return detector.to_empty(device="cpu")


def _fold_unit(source: ConvUnit, target: ConvUnit) -> None:
    """Writes the convolution of `target` so that it equals convolution and normalization of `source` in eval mode."""
    norm = source.norm
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    with torch.no_grad():
        target.conv.weight.copy_(source.conv.weight.double() * scale[:, None, None, None])
        target.conv.bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)


def prepare(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as `forward` takes them -> the network's float32 input [N, 3, 32, 32], channels last, about zero mean and unit deviation."""
    x = to_rgb_uint8(images).to(torch.float32)
    if x.shape[2:] != (RESOLUTION, RESOLUTION):
        x = F.interpolate(x, size=(RESOLUTION, RESOLUTION), mode="bilinear", align_corners=False, antialias=True)
    return ((x / 255 - PIXEL_CENTER) / PIXEL_SCALE).contiguous(memory_format=torch.channels_last)


def weights_digest(path: str | os.PathLike = WEIGHTS_PATH) -> str:
    """SHA-256 of the weights file as hex. Raises UserError where the file cannot be read."""
    try:
        return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def save_embedded(detector: EmbeddedDetector, path: str | os.PathLike, meta: dict) -> None:
    """Writes a folded detector as float16 safetensors with `meta` (JSON-able) as metadata; atomic only on a path from dnnlib.atomic_path."""
    tensors = {name: value.to(torch.float16).contiguous() for name, value in detector.state_dict().items()}
    # One entry only, because safetensors writes several in random order and equal weights should be equal files.
    data = safetensors.torch.save(tensors, metadata={META_KEY: json.dumps(meta, sort_keys=True)})
    # Written here and not by safetensors, whose own writer makes files that only their owner can read.
    pathlib.Path(path).write_bytes(data)


def read_meta(path: str | os.PathLike = WEIGHTS_PATH) -> dict:
    """What the training script recorded: classes, recipe, accuracy, data fingerprint. Raises UserError as load_embedded does."""
    return _read_weights(path)[1]


def load_embedded(device: str | torch.device = "cpu", path: str | os.PathLike = WEIGHTS_PATH) -> EmbeddedDetector:
    """Loads the detector in eval mode, frozen, float32 on `device`.

    Raises:
        UserError: the file is missing, damaged, or holds something else than this network's weights.
    """
    tensors, _ = _read_weights(path)
    detector = _empty_detector()
    expected = {name: tuple(value.shape) for name, value in detector.state_dict().items()}
    if {name: tuple(value.shape) for name, value in tensors.items()} != expected:
        raise UserError(f"{path} does not hold the tensors of the embedded detector; restore the file that ships with the code")
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise UserError(f"{path} holds numbers that are not finite; restore the file that ships with the code")
    detector.load_state_dict({name: value.to(torch.float32) for name, value in tensors.items()})
    return detector.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def _read_weights(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors of a weights file and its `meta`, with everything that can be wrong with a file turned into one sentence."""
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            header = handle.metadata() or {}
            if META_KEY not in header:
                raise UserError(f"{path} is not a weights file of the embedded detector; restore the file that ships with the code")
            names = handle.keys()
            return {name: handle.get_tensor(name) for name in names}, parse_json(header[META_KEY])
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | os.PathLike, error: Exception) -> UserError:
    """The sentence for a weights file that is absent or damaged."""
    return UserError(f"cannot read the weights of the embedded detector at {path} ({error}); restore the file that ships with the code")
