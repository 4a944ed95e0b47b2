"""Detectors: networks that turn images into the features, class probabilities or LPIPS features that metrics compare.

`get_detector` is the way in. `inception` and `vgg16` are the TorchScript files of StyleGAN2-ADA's protocols (`torchscript.py`), `embedded`
ships with the code (`embedded.py`), and any other TorchScript file can be named by its path or URL.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch

from dnnlib import UserError
from metrics.detectors import embedded, torchscript
from metrics.detectors.images import to_rgb_float, to_rgb_uint8

OUTPUTS = ("features", "probabilities", "lpips")
LPIPS_RESIZE = "none (box to 256 above 256)"  # done by `metrics.perceptual_path_length`, before the detector


@dataclasses.dataclass
class Detector:
    """One network with one kind of output.

    Attributes:
        name: what result keys and records call it.
        digest: SHA-256 of its weights, hex.
        output: one of OUTPUTS.
        resize: how images reach its input size, in words, for the record.
        feature_dim: width of its output, None until the first call.
    """

    name: str
    digest: str
    output: str
    resize: str
    run: Callable[[torch.Tensor], torch.Tensor]
    feature_dim: int | None = None

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] with 1 to 4 channels, on the detector's device -> float32 [N, D].

        Images are uint8. LPIPS features also take floating point of the same range, 0 to 255, and are computed at the size of the images.
        Rows may hold NaN or infinity if the network returns them; `metrics.features.run_pass` and whoever else compares them checks.

        Raises:
            UserError: images of another kind, or a network that fails on them or whose output is no matrix of N rows.
        """
        result = self.run(to_rgb_float(images) if self.output == "lpips" else to_rgb_uint8(images))
        if not isinstance(result, torch.Tensor) or result.ndim != 2 or len(result) != len(images) or result.shape[1] == 0:
            shape = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
            raise UserError(f"detector {self.name} returned {shape} for {len(images)} images; a matrix of {len(images)} rows is needed")
        self.feature_dim = result.shape[1]
        return result.to(torch.float32)


def detector_name(spec: str) -> str:
    """The name that results of detector `spec` carry: a known name, or a file's name without its suffix."""
    return spec if spec == "embedded" else torchscript.name_of(spec)


def check_detector(spec: str) -> None:
    """Makes sure that detector `spec` can be loaded, downloading its file where needed, before any work starts.

    Raises:
        UserError: unknown name, missing or unreadable file, a download that fails, or a TorchScript file that the user has not said to trust.
    """
    if spec == "embedded":
        embedded.weights_digest()
    else:
        torchscript.locate(spec)


def trust_detector(spec: str | None, remember: bool = True) -> None:
    """Lets detector `spec` run although it is a file of unknown origin; of the known names and of None there is nothing to say.

    Args:
        remember: also in later commands, by its SHA-256.

    Raises:
        UserError: as `check_detector`.
    """
    if spec is not None and spec != "embedded":
        torchscript.trust_file(spec, remember)


def get_detector(spec: str, device: torch.device | str, need: str = "features") -> Detector:
    """Loads a detector onto `device`. The network is kept in memory, so that asking again costs nothing.

    Args:
        spec: "inception", "vgg16", "embedded", or the path or URL of a TorchScript file that maps uint8 RGB images to [N, D].
        device: where it runs.
        need: "features", "probabilities" of its classes, or "lpips": features whose squared Euclidean distance is LPIPS, of vgg16 only.

    Raises:
        UserError: unknown name, file missing, damaged or not to be downloaded, or a network without the output that is needed.
    """
    if need not in OUTPUTS:
        raise UserError(f"a detector has no output {need!r}; known are: {', '.join(OUTPUTS)}")
    if spec == "embedded" and need == "lpips":
        raise UserError(f"detector embedded gives {torchscript.LACKING[need]}")
    network, digest, resize = _load(spec, str(device))
    run = _embedded_run(network, need) if spec == "embedded" else torchscript.runner(network, detector_name(spec), need)
    return Detector(name=detector_name(spec), digest=digest, output=need, resize=LPIPS_RESIZE if need == "lpips" else resize, run=run)


@functools.lru_cache(maxsize=4)
def _load(spec: str, device: str) -> tuple[torch.nn.Module, str, str]:
    """(network, digest, resize) of a detector on a device."""
    if spec == "embedded":
        resize = f"antialiased bilinear to {embedded.RESOLUTION}x{embedded.RESOLUTION}"
        return embedded.load_embedded(device), embedded.weights_digest(), resize
    network, digest = torchscript.load(spec, device)
    return network, digest, "inside the detector"


def _embedded_run(network: embedded.EmbeddedDetector, need: str) -> Callable[[torch.Tensor], torch.Tensor]:
    return network.probabilities if need == "probabilities" else network
