"""Detectors kept as TorchScript files: StyleGAN2-ADA's Inception and VGG16 by name, and any other file by path or URL.

A TorchScript file is a program. Known names come from the address that StyleGAN2-ADA's protocols use, or from the user's own mirrors
($DNNLIB_MIRRORS); other files are run because the user named them. The download itself (cache, resuming, mirrors, errors) is
`dnnlib.download`'s work.
"""

from __future__ import annotations

import pathlib
import re
import struct
import zipfile
from collections.abc import Callable

import torch

from dnnlib import UserError, download
from metrics.detectors.trust import require_trust, trust

BASE_URLS = ("https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/",)
TAKEN = ("inception", "vgg16", "embedded")  # names that a file of the user's does not get
FILES = {"inception": "inception-2015-12-05.pt", "vgg16": "vgg16.pt"}
# Arguments that ask these files for an output; a file can give it where its forward() has them all.
ARGUMENTS = {
    "features": {"return_features": True},
    "probabilities": {"no_output_bias": True},
    "lpips": {"resize_images": False, "return_lpips": True},
}
LACKING = {
    "features": "no features; it is not StyleGAN2-ADA's file of that name",
    "probabilities": "no class probabilities, which the inception score needs; use inception or embedded",
    "lpips": "no LPIPS features, which path lengths need; use vgg16",
}


def name_of(spec: str) -> str:
    """The name of the detector in result keys: "inception" or "vgg16" also for a copy of their file, else the file name as an identifier.

    A file of the user's that is called like a detector of the project's is another one: inception.pt is inception_custom.
    """
    file = pathlib.PurePosixPath(spec.replace("\\", "/").split("?")[0]).name
    for name, known in FILES.items():
        if spec == name or file == known:
            return name
    found = re.sub(r"\W+", "_", pathlib.PurePosixPath(file).stem).strip("_") or "custom"
    return f"{found}_custom" if found in TAKEN else found


def locate(spec: str) -> pathlib.Path:
    """The local file of detector `spec`, downloaded where needed, known to be a whole TorchScript archive, and trusted.

    Raises:
        UserError: `spec` is neither a known name, nor a file, nor a URL, the download fails, or the file is no TorchScript archive; one from
            the download cache is then removed from it. Or it is neither one that this project names nor trusted by the user.
    """
    path = _find(spec)
    if spec not in FILES:
        require_trust(path)
    return path


def trust_file(spec: str, remember: bool = True) -> None:
    """Lets the file of detector `spec` run, as --trust-detector does. Raises UserError as `locate`, and of a name there is nothing to say."""
    if spec not in FILES:
        path = _find(spec)
        trust(download.file_digest(path), path.name, remember)


def _find(spec: str) -> pathlib.Path:
    """The local file of detector `spec`, trusted or not."""
    if spec in FILES:
        try:
            path = download.fetch_published(FILES[spec], BASE_URLS)
        except UserError as error:
            raise UserError(f"detector {spec!r} is not available: {error}; --detector=embedded needs no download") from error
    elif download.is_url(spec):
        path = download.fetch(spec)
    else:
        path = pathlib.Path(spec)
        if not path.is_file():
            raise UserError(f"detector {spec} is neither inception, vgg16 or embedded, nor a file, nor a URL")
    _check_archive(path)
    return path


def load(spec: str, device: torch.device | str) -> tuple[torch.jit.ScriptModule, str]:
    """Loads a TorchScript detector in eval mode; returns it with the SHA-256 of its file.

    Raises:
        UserError: file missing, not to be downloaded, damaged, no TorchScript, or without a forward() of images.
    """
    path = locate(spec)
    try:
        digest = download.file_digest(path)
        network = torch.jit.load(str(path), map_location=device)
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a readable TorchScript file ({reason}); delete or replace it") from error
    if not hasattr(network, "forward") or len(network.forward.schema.arguments) < 2:
        raise UserError(f"the TorchScript file {path} has no forward() that takes images; a detector maps them to a matrix [N, D]")
    return network.eval(), digest


def runner(network: torch.jit.ScriptModule, name: str, need: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from RGB images [N, 3, H, W], uint8 or (for "lpips") float32 with the same range, to the output `need` of the network.

    A file other than the known ones may give its features without being asked for them by an argument.

    Raises:
        UserError: the network does not offer the output; from the function, the network fails on the images.
    """
    offered = {argument.name for argument in network.forward.schema.arguments}
    arguments = ARGUMENTS[need]
    if not arguments.keys() <= offered:
        if need != "features" or name in FILES:
            raise UserError(f"detector {name} gives {LACKING[need]}")
        arguments = {}

    def run(images: torch.Tensor) -> torch.Tensor:
        try:
            return network(images, **arguments)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = next(line for line in reversed([type(error).__name__, *str(error).splitlines()]) if line.strip())
            raise UserError(f"detector {name} fails on {images.dtype} images of shape {list(images.shape)} ({reason})") from error

    return run


def _check_archive(path: pathlib.Path) -> None:
    """Refuses a file that is cut off, a web page, a pickle or a table of weights, before it costs more than a look at its table of contents."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name.partition("/")[2] for name in archive.namelist()}
        if "constants.pkl" in parts:
            return
        found = "a PyTorch file of weights without their program" if "data.pkl" in parts else "an archive of something else"
    except (OSError, ValueError, LookupError, RuntimeError, struct.error, zipfile.BadZipFile) as error:
        found = f"{path.stat().st_size:,} bytes of something else, or cut off: {error}"
    remedy = "it was removed; run again, or put a whole file there" if download.discard(path) else "delete or replace it"
    raise UserError(f"{path} is not a readable TorchScript file but {found}; {remedy}")
