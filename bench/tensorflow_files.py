"""Network files as StyleGAN2 for TensorFlow writes them: tiny networks, always the same, under its names and in its layouts."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

WIDTHS = {4: 6, 8: 6, 16: 4}
LATENT, W = 5, 7


class Network:
    """Pickles as dnnlib.tflib.network.Network does."""

    def __init__(self, function: str, variables: Mapping[str, np.ndarray], parts: Mapping[str, Network] | None = None, **arguments: Any):
        self.function, self.variables, self.parts, self.version, self.arguments = function, dict(variables), dict(parts or {}), 4, arguments

    def __getstate__(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "name": "network",
            "static_kwargs": self.arguments,
            "components": self.parts,
            "build_module_src": "raise SystemExit",
            "build_func_name": self.function,
            # A session returns a variable without axes as a number of numpy.
            "variables": [(name, value[()] if value.ndim == 0 else value) for name, value in self.variables.items()],
        }


Network.__module__ = "dnnlib.tflib.network"


def written(content: Any, protocol: int = 4) -> bytes:
    """The bytes of a file with this content."""
    names = ["dnnlib.tflib", "dnnlib.tflib.network"]
    modules = [types.ModuleType(name) for name in names]
    modules[1].Network = Network
    sys.modules.update(zip(names, modules))
    try:
        return pickle.dumps(content, protocol=protocol)
    finally:
        for name in names:
            del sys.modules[name]


def generator(labels: int = 0, architecture: str = "skip", colours: int = 3, seed: int = 0, **arguments: Any) -> Network:
    """A G_main of 16x16 pixels with two mapping layers."""
    draw = _drawer(seed)
    mapping = {"Dense0/weight": draw(LATENT + (W if labels else 0), 9), "Dense0/bias": draw(9), "Dense1/weight": draw(9, W), "Dense1/bias": draw(W)}
    if labels:
        mapping |= {"LabelEmbed/weight": draw(labels, W), "LabelEmbed/bias": draw(W)}
    synthesis = {"4x4/Const/const": draw(1, WIDTHS[4], 4, 4)}

    def layer(name: str, fan_in: int, fan_out: int, width: int = 3) -> None:
        synthesis.update({f"{name}/weight": draw(width, width, fan_in, fan_out), f"{name}/bias": draw(fan_out)})
        synthesis.update({f"{name}/mod_weight": draw(W, fan_in), f"{name}/mod_bias": draw(fan_in)})

    for step, (res, width) in enumerate(WIDTHS.items()):
        convolutions = {"Conv0_up": 2 * step - 1, "Conv1": 2 * step} if step else {"Conv": 0}
        for name, index in convolutions.items():
            layer(f"{res}x{res}/{name}", WIDTHS[res // 2] if name == "Conv0_up" else width, width)
            synthesis |= {f"{res}x{res}/{name}/noise_strength": draw(), f"noise{index}": draw(1, 1, res, res)}
        if architecture == "resnet" and step:
            synthesis[f"{res}x{res}/Skip/weight"] = draw(1, 1, WIDTHS[res // 2], width)
        if architecture == "skip" or res == max(WIDTHS):
            layer(f"{res}x{res}/ToRGB", width, colours, 1)
    parts = {"synthesis": Network("G_synthesis", synthesis), "mapping": Network("G_mapping", mapping)}
    return Network("G_main", {"dlatent_avg": draw(W)}, parts, resolution=16, mapping_fmaps=9, **arguments)


def discriminator(labels: int = 0, architecture: str = "resnet", colours: int = 3, seed: int = 1, **arguments: Any) -> Network:
    """A D_main of 16x16 pixels."""
    draw = _drawer(seed)
    outputs = 8 if labels else 1
    variables = {"Output/weight": draw(WIDTHS[4], outputs), "Output/bias": draw(outputs)}
    variables |= {"4x4/Dense0/weight": draw(16 * WIDTHS[4], WIDTHS[4]), "4x4/Dense0/bias": draw(WIDTHS[4])}

    def layer(name: str, fan_in: int, fan_out: int, width: int = 3) -> None:
        variables.update({f"{name}/weight": draw(width, width, fan_in, fan_out), f"{name}/bias": draw(fan_out)})

    layer("4x4/Conv", WIDTHS[4] + 1, WIDTHS[4])
    for res, width in WIDTHS.items():
        if architecture == "skip" or res == max(WIDTHS):
            layer(f"{res}x{res}/FromRGB", colours, width, 1)
        if res > 4:
            layer(f"{res}x{res}/Conv0", width, width)
            layer(f"{res}x{res}/Conv1_down", width, WIDTHS[res // 2])
        if res > 4 and architecture == "resnet":
            variables[f"{res}x{res}/Skip/weight"] = draw(1, 1, width, WIDTHS[res // 2])
    if labels:
        variables |= {"LabelEmbed/weight": draw(labels, outputs), "LabelEmbed/bias": draw(outputs)}
    return Network("D_main", variables, **arguments)


def file_of(labels: int = 0, protocol: int = 4, **arguments: Any) -> bytes:
    """A whole file: G, D and the average."""
    return written((generator(labels), discriminator(labels, **arguments), generator(labels, seed=2)), protocol)


def _drawer(seed: int) -> Callable[..., np.ndarray]:
    rng = np.random.default_rng(seed)
    return lambda *shape: np.asarray(rng.standard_normal(shape), np.float32)
