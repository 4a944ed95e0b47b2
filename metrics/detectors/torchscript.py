"""Detectors kept as TorchScript files: StyleGAN2-ADA's Inception and VGG16 by name, and any other file by path or URL.

A TorchScript file is a program. Known names come from the address that StyleGAN2-ADA's protocols use; other files are run because the user
named them. The download itself (cache, resuming, errors) is `dnnlib.download`'s work.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable

import torch

from dnnlib import UserError, download

BASE_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
FILES = {"inception": "inception-2015-12-05.pt", "vgg16": "vgg16.pt"}
# Arguments that these files take, by the output that is wanted; a file gets those of them that its forward() has.
ARGUMENTS = {"features": {"return_features": True}, "probabilities": {"no_output_bias": True}}


def name_of(spec: str) -> str:
    """The name of the detector in result keys: "inception" or "vgg16" also for a copy of their file, else the file name as an identifier."""
    file = pathlib.PurePosixPath(spec.replace("\\", "/").split("?")[0]).name
    for name, known in FILES.items():
        if spec == name or file == known:
            return name
    return re.sub(r"\W+", "_", pathlib.PurePosixPath(file).stem).strip("_") or "custom"


def locate(spec: str) -> pathlib.Path:
    """The local file of detector `spec`, downloaded where needed.

    Raises:
        UserError: `spec` is neither a known name, nor a file, nor a URL, or the download fails.
    """
    if spec in FILES:
        try:
            return download.fetch(BASE_URL + FILES[spec])
        except UserError as error:
            raise UserError(f"detector {spec!r} is not available: {error}; --detector=embedded needs no download") from error
    if download.is_url(spec):
        return download.fetch(spec)
    path = pathlib.Path(spec)
    if not path.is_file():
        raise UserError(f"--detector={spec} is neither inception, vgg16 or embedded, nor a file, nor a URL")
    return path


def load(spec: str, device: torch.device | str) -> tuple[torch.jit.ScriptModule, str]:
    """Loads a TorchScript detector in eval mode; returns it with the SHA-256 of its file.

    Raises:
        UserError: file missing, not to be downloaded, damaged, or no TorchScript.
    """
    path = locate(spec)
    try:
        digest = download.file_digest(path)
        network = torch.jit.load(str(path), map_location=device)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a readable TorchScript file ({reason}); delete or replace it") from error
    return network.eval(), digest


def runner(network: torch.jit.ScriptModule, name: str, need: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from uint8 RGB images [N, 3, H, W] to the output `need` of the network.

    Raises:
        UserError: probabilities are needed and the network offers none.
    """
    offered = {argument.name for argument in network.forward.schema.arguments}
    arguments = {key: value for key, value in ARGUMENTS[need].items() if key in offered}
    if need == "probabilities" and not arguments:
        raise UserError(f"detector {name} gives no class probabilities, which the inception score needs; use inception or embedded")

    def run(images: torch.Tensor) -> torch.Tensor:
        return network(images, **arguments)

    return run
