"""Networks of StyleGAN2 and StyleGAN2-ADA for TensorFlow, as records of this project's networks.

A file of those programs holds three networks, each as source text, which nothing here runs, constructor arguments, and variables by name. All
sizes are read off the variables; of the arguments only those count that no variable shows. A variable or an argument of a network that would
not be in the record is refused rather than left out; the arguments of its parts are copies of them and are not looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from torch_utils.checkpoint import NetworkRecord
from torch_utils.layers import DEFAULT_FILTER
from torch_utils.ops.upfirdn2d import setup_filter
from torch_utils.pickle_builders import NumpyArray
from torch_utils.safe_pickle import RefusedPickle

TENSORFLOW_NETWORK = "dnnlib.tflib.network.Network"
LOWEST_VERSION = 4  # StyleGAN2's; 3 is the first StyleGAN's
MAX_VARIABLES = 1000  # of a network; a synthesis network for 1024x1024 pixels has some 140
# Arguments that the variables show by their shapes or names.
SIZES = frozenset(
    [
        *("latent_size", "label_size", "dlatent_size", "resolution", "num_channels", "architecture", "mbstd_num_features"),
        *("fmap_base", "fmap_max", "fmap_min", "fmap_decay", "mapping_layers", "mapping_fmaps", "label_fmaps"),
    ]
)
# Arguments of training or evaluation, which say nothing of what the network is.
PASSING = frozenset(
    [
        *("truncation_psi", "truncation_cutoff", "truncation_psi_val", "truncation_cutoff_val", "style_mixing_prob", "randomize_noise"),
        *("dtype", "dlatent_broadcast", "fused_modconv", "freeze_layers", "structure"),
    ]
)
FIXED = {"normalize_latents": True}  # the only value that this architecture has
PARTS = ("mapping", "synthesis")
MAX_NAME = 200  # letters of the name of a variable or argument


class TensorFlowNetwork:
    """One network of such a file: `state`, which is checked where it is used."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}

    def set_state(self, state: Any) -> None:
        """Takes version, arguments, variables and parts."""
        if not isinstance(state, dict):
            raise RefusedPickle("holds a TensorFlow network without its state")
        self._state = state

    @property
    def version(self) -> int:
        """Of the file format."""
        version = self._state.get("version")
        return version if type(version) is int and 0 <= version < 1000 else 0

    @property
    def function(self) -> str:
        """Name of the function that built it; empty where the file has none."""
        name = self._state.get("build_func_name")
        return name if isinstance(name, str) else ""

    @property
    def arguments(self) -> dict[str, Any]:
        """What that function was given."""
        arguments = self._state.get("static_kwargs")
        if not isinstance(arguments, dict) or not all(isinstance(name, str) and len(name) <= MAX_NAME for name in arguments):
            raise RefusedPickle("holds a TensorFlow network without a table of arguments")
        return arguments

    def variables(self, depth: int = 0) -> dict[str, np.ndarray]:
        """Values by name, those of a part behind its name and a slash."""
        own, parts = self._state.get("variables"), self._state.get("components")
        if not isinstance(own, list) or not isinstance(parts, dict) or len(own) > MAX_VARIABLES or depth > 1:
            raise RefusedPickle("holds a TensorFlow network without its table of variables")
        values = {}
        for entry in own:
            if not isinstance(entry, tuple) or len(entry) != 2 or not isinstance(entry[0], str) or len(entry[0]) > MAX_NAME or entry[0] in values:
                raise RefusedPickle("holds a TensorFlow variable without a name of its own")
            values[entry[0]] = _value(*entry)
        for name, part in parts.items():
            if not isinstance(part, TensorFlowNetwork) or name not in PARTS:
                raise RefusedPickle(f"holds a {type(part).__name__} as a part of a TensorFlow network, whose parts are {' and '.join(PARTS)}")
            values |= {f"{name}/{key}": value for key, value in part.variables(depth + 1).items()}
        return values


def tensorflow_records(networks: tuple[TensorFlowNetwork, ...]) -> dict[str, NetworkRecord]:
    """Records of G, D and G_ema, as `torch_utils.legacy.read_pickle` gives them.

    Args:
        networks: those of the file, in its order.

    Raises:
        RefusedPickle: they are not three, older than StyleGAN2, or of another architecture.
    """
    if len(networks) != 3:
        raise RefusedPickle(f"holds {len(networks)} TensorFlow networks where three are expected, the generator, the discriminator and the average")
    if oldest := [network.version for network in networks if network.version < LOWEST_VERSION]:
        raise RefusedPickle(f"is of version {oldest[0]} of the TensorFlow format, before StyleGAN2, which has {LOWEST_VERSION}")
    G, D, average = networks
    records = {"G": _generator(G), "D": _discriminator(D)}
    return records | {"G_ema": records["G"] if average is G else _generator(average)}


def _value(name: str, value: Any) -> np.ndarray:
    shown = f"the TensorFlow variable {ascii(name)[1:-1][:100]}"
    if isinstance(value, float):  # numpy turns a variable without axes into a number
        return np.asarray(value)
    if not isinstance(value, NumpyArray) or (values := value.take()) is None:
        raise RefusedPickle(f"holds {'an array of another variable' if isinstance(value, NumpyArray) else f'a {type(value).__name__}'} as {shown}")
    if values.dtype.kind != "f" or values.dtype.itemsize < 4:  # so that the tensors made of a file are no larger than it
        raise RefusedPickle(f"holds {shown} as {values.dtype} where float32 is expected")
    return values


class _Reading:
    """A network on its way into a record: every variable and argument is taken from here, and what is left at the end is an error."""

    def __init__(self, network: TensorFlowNetwork) -> None:
        self.function = network.function
        self._variables = network.variables()
        self._arguments = dict(network.arguments)
        self.tensors: dict[str, torch.Tensor] = {}
        self.taps = self.argument("resample_kernel", list(DEFAULT_FILTER))
        if not isinstance(self.taps, list) or not all(isinstance(tap, int | float) and math.isfinite(tap) for tap in self.taps) or not sum(self.taps):
            raise RefusedPickle("gives a TensorFlow network a resample_kernel that is no row of numbers with a sum")
        if any("_lod" in name for name in self._variables):
            raise RefusedPickle("holds a TensorFlow network of progressive growing, which this architecture is not")

    def __contains__(self, name: str) -> bool:
        return name in self._variables

    def argument(self, name: str, default: Any) -> Any:
        """An argument, or what it is when the file does not give it."""
        value = self._arguments.pop(name, default)
        if isinstance(value, tuple):
            value = list(value)
        numbers = value if isinstance(value, list) and len(value) <= 64 else [value]
        if not all(number is None or isinstance(number, float | str) or (isinstance(number, int) and abs(number) < 2**63) for number in numbers):
            raise RefusedPickle(f"gives a {type(value).__name__} as the argument {name} of a TensorFlow network")
        return value

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """Of a variable that has to be there and to have so many axes."""
        if name not in self:
            raise RefusedPickle(f"lacks the TensorFlow variable {name}")
        shape = self._variables[name].shape
        if len(shape) != axes:
            raise RefusedPickle(f"holds the TensorFlow variable {name} of the shape {list(shape)}, where {axes} axes are expected")
        return shape

    def count(self, pattern: str) -> int:
        """How many variables have a name like this, numbered from 0."""
        number = 0
        while pattern.format(number) in self._variables:
            number += 1
        return number

    def resolutions(self, prefix: str) -> list[int]:
        """Those of the blocks, ascending from 4."""
        found = {int(match[1]) for name in self._variables if (match := re.match(rf"{prefix}(\d{{1,5}})x\1/", name))}
        expected = [4 << step for step in range(len(found))]
        if not found or sorted(found) != expected:
            raise RefusedPickle(f"has TensorFlow layers of the resolutions {sorted(found)}, which do not double from 4")
        return expected

    def take(self, ours: str, theirs: str, axes: int, change: Callable[[np.ndarray], np.ndarray] = lambda value: value) -> None:
        """Puts a variable of so many axes under its name here, rearranged."""
        self.shape(theirs, axes)
        value = change(self._variables.pop(theirs))
        self.tensors[ours] = torch.from_numpy(np.array(value, np.float32, order="C"))

    def dense(self, ours: str, theirs: str) -> None:
        """A fully connected layer."""
        self.take(f"{ours}.weight", f"{theirs}/weight", 2, np.transpose)
        self.take(f"{ours}.bias", f"{theirs}/bias", 1)

    def kernel(self, ours: str, theirs: str, up: bool = False) -> None:
        """The kernel of a convolution; where it upsamples, there it is correlated and here convolved."""
        self.take(f"{ours}.weight", f"{theirs}/weight", 4, lambda value: (value[::-1, ::-1] if up else value).transpose(3, 2, 0, 1))

    def filter(self, ours: str, taps: Any = None) -> None:
        """The low-pass filter, which TensorFlow keeps in the arguments."""
        self.tensors[f"{ours}.resample_filter"] = setup_filter(self.taps if taps is None else taps)

    def convolution(self, ours: str, theirs: str, bias: bool = True, taps: Any = None) -> None:
        """A convolution of the discriminator."""
        self.kernel(ours, theirs)
        self.filter(ours, taps)
        if bias:
            self.take(f"{ours}.bias", f"{theirs}/bias", 1)

    def modulated(self, ours: str, theirs: str, up: bool = False) -> None:
        """A modulated convolution; the one that is added to its styles there is part of the bias here."""
        self.kernel(ours, theirs, up)
        self.take(f"{ours}.bias", f"{theirs}/bias", 1)
        self.take(f"{ours}.affine.weight", f"{theirs}/mod_weight", 2, np.transpose)
        self.take(f"{ours}.affine.bias", f"{theirs}/mod_bias", 1, lambda value: value + 1)

    def synthesis_layer(self, ours: str, theirs: str, noise: str, up: bool = False) -> None:
        """A modulated convolution with its noise, if it has any, and its filter."""
        self.modulated(ours, theirs, up)
        self.filter(ours)
        if noise in self:
            self.take(f"{ours}.noise_const", noise, 4, lambda value: value[0, 0])
            self.take(f"{ours}.noise_strength", f"{theirs}/noise_strength", 0)

    def drop_noise(self) -> None:
        """Forgets the noise of a network that does not use it."""
        unused = [name for name in self._variables if re.fullmatch(r"synthesis/(noise\d+|.*/noise_strength)", name)]
        for name in unused:
            del self._variables[name]

    def close(self) -> dict[str, torch.Tensor]:
        """The tensors, once nothing is left that they would have to hold."""
        self._variables.pop("lod", None)  # how far a training of progressive growing had come
        if self._variables:
            raise RefusedPickle(f"holds the TensorFlow variable {ascii(min(self._variables))[1:-1][:100]}, which this architecture does not have")
        for name, value in self._arguments.items():
            expected = (None, FIXED[name]) if name in FIXED else (None, False)
            if name not in SIZES | PASSING and not any(value is one for one in expected):
                raise RefusedPickle(f"gives a TensorFlow network the argument {ascii(name)[1:-1][:100]}, which this architecture does not have")
        return self.tensors


def _generator(network: TensorFlowNetwork) -> NetworkRecord:
    """G_main with its parts `mapping` and `synthesis`."""
    reading = _Reading(network)
    if "mapping/LabelConcat/weight" in reading:
        raise RefusedPickle("holds a generator of the TensorFlow StyleGAN2 with labels, which that one takes in another way than StyleGAN2-ADA")
    if not reading.argument("use_noise", True):
        reading.drop_noise()
    kwargs = _generator_arguments(reading)
    if kwargs["c_dim"]:
        reading.dense("mapping.embed", "mapping/LabelEmbed")
    for index in range(kwargs["mapping_kwargs"]["num_layers"]):
        reading.dense(f"mapping.fc{index}", f"mapping/Dense{index}")
    reading.take("mapping.w_avg", "dlatent_avg", 1)
    reading.take("synthesis.b4.const", "synthesis/4x4/Const/const", 4, lambda value: value[0])
    for step, res in enumerate(reading.resolutions("synthesis/")):
        ours, theirs = f"synthesis.b{res}", f"synthesis/{res}x{res}"
        reading.filter(ours)
        if step:
            reading.synthesis_layer(f"{ours}.conv0", f"{theirs}/Conv0_up", f"synthesis/noise{2 * step - 1}", up=True)
        reading.synthesis_layer(f"{ours}.conv1", f"{theirs}/{'Conv1' if step else 'Conv'}", f"synthesis/noise{2 * step}")
        if f"{theirs}/Skip/weight" in reading:
            reading.kernel(f"{ours}.skip", f"{theirs}/Skip", up=True)
            reading.filter(f"{ours}.skip")
        if f"{theirs}/ToRGB/weight" in reading:
            reading.modulated(f"{ours}.torgb", f"{theirs}/ToRGB")
    return NetworkRecord("training.networks.Generator", kwargs, reading.close())


def _generator_arguments(reading: _Reading) -> dict[str, Any]:
    """Constructor arguments of the generator."""
    resolutions = reading.resolutions("synthesis/")
    top = resolutions[-1]
    layers = reading.count("mapping/Dense{}/weight")
    labels = reading.shape("mapping/LabelEmbed/weight", 2) if "mapping/LabelEmbed/weight" in reading else (0, 0)
    beta = reading.argument("w_avg_beta", reading.argument("dlatent_avg_beta", 0.995))  # None there: the mean stays as it is
    first, last = reading.shape("mapping/Dense0/weight", 2), reading.shape(f"mapping/Dense{max(layers - 1, 0)}/weight", 2)
    return {
        "z_dim": first[0] - labels[1],
        "c_dim": labels[0],
        "w_dim": last[1],
        "img_resolution": top,
        "img_channels": reading.shape(f"synthesis/{top}x{top}/ToRGB/weight", 4)[3],
        "mapping_kwargs": {
            "num_layers": layers,
            "embed_features": labels[1] or None,
            "layer_features": first[1],
            "activation": reading.argument("mapping_nonlinearity", "lrelu"),
            "lr_multiplier": reading.argument("mapping_lrmul", 0.01),
            "w_avg_beta": 1 if beta is None else beta,
        },
        "synthesis_kwargs": _widths(reading, [(4, "synthesis/4x4/Conv"), *((res, f"synthesis/{res}x{res}/Conv1") for res in resolutions[1:])])
        | {
            "num_fp16_res": reading.argument("num_fp16_res", 0),
            "conv_clamp": reading.argument("conv_clamp", None),
            "architecture": _architecture(reading, "synthesis/", "ToRGB"),
            "resample_filter": reading.taps,
            "use_noise": "synthesis/noise0" in reading,
            "activation": reading.argument("nonlinearity", "lrelu"),
        },
    }


def _discriminator(network: TensorFlowNetwork) -> NetworkRecord:
    """D_stylegan2, or the D_main of StyleGAN2-ADA."""
    reading = _Reading(network)
    kwargs = _discriminator_arguments(reading)
    if kwargs["c_dim"]:
        reading.dense("mapping.embed", "LabelEmbed")
    for index in range(kwargs["mapping_kwargs"]["num_layers"]):
        reading.dense(f"mapping.fc{index}", f"Mapping{index}")
    for res in reading.resolutions(""):
        ours, theirs = f"b{res}", f"{res}x{res}"
        if f"{theirs}/FromRGB/weight" in reading:
            reading.convolution(f"{ours}.fromrgb", f"{theirs}/FromRGB", taps=DEFAULT_FILTER if res == 4 else None)
        if res == 4:
            continue
        reading.filter(ours)
        reading.convolution(f"{ours}.conv0", f"{theirs}/Conv0")
        reading.convolution(f"{ours}.conv1", f"{theirs}/Conv1_down")
        if f"{theirs}/Skip/weight" in reading:
            reading.convolution(f"{ours}.skip", f"{theirs}/Skip", bias=False)
    reading.convolution("b4.conv", "4x4/Conv", taps=DEFAULT_FILTER)
    reading.dense("b4.fc", "4x4/Dense0")
    reading.dense("b4.out", "Output")
    return NetworkRecord("training.networks.Discriminator", kwargs, reading.close())


def _discriminator_arguments(reading: _Reading) -> dict[str, Any]:
    """Constructor arguments of the discriminator."""
    resolutions = reading.resolutions("")
    top = resolutions[-1]
    labels = reading.shape("LabelEmbed/weight", 2) if "LabelEmbed/weight" in reading else (0, 0)
    outputs = reading.shape("Output/weight", 2)[1]
    if outputs != 1 and not labels[0]:
        raise RefusedPickle(f"holds a TensorFlow discriminator of {outputs} outputs that embeds no labels, in another way than StyleGAN2-ADA")
    layers = reading.count("Mapping{}/weight")
    activation = reading.argument("nonlinearity", "lrelu")
    kernel = reading.shape("4x4/Conv/weight", 4)
    group_size = reading.argument("mbstd_group_size", 4 if reading.function == "D_stylegan2" else None)
    return {
        "c_dim": labels[0],
        "img_resolution": top,
        "img_channels": reading.shape(f"{top}x{top}/FromRGB/weight", 4)[2],
        "architecture": _architecture(reading, "", "FromRGB"),
        **_widths(reading, [(4, "4x4/Conv"), *((res, f"{res}x{res}/Conv0") for res in resolutions[1:])]),
        "num_fp16_res": reading.argument("num_fp16_res", 0),
        "conv_clamp": reading.argument("conv_clamp", None),
        "cmap_dim": outputs if labels[0] else None,
        "block_kwargs": {"activation": activation, "resample_filter": reading.taps},
        "mapping_kwargs": {
            "num_layers": layers,
            "embed_features": labels[1] or None,
            "layer_features": reading.shape("Mapping0/weight", 2)[1] if layers else None,
            "activation": activation,
            "lr_multiplier": reading.argument("mapping_lrmul", 0.1),
        },
        "epilogue_kwargs": {"mbstd_group_size": group_size, "mbstd_num_channels": kernel[2] - kernel[3], "activation": activation},
    }


def _architecture(reading: _Reading, prefix: str, rgb: str) -> str:
    """'skip', 'resnet' or 'orig', by what the lowest blocks have: a layer between features and image, or one around the convolutions."""
    if f"{prefix}8x8/Skip/weight" in reading:
        return "resnet"
    return "skip" if f"{prefix}4x4/{rgb}/weight" in reading else "orig"


def _widths(reading: _Reading, layers: Iterable[tuple[int, str]]) -> dict[str, int]:
    """channel_base and channel_max under which blocks are as wide as these layers, given by resolution, are."""
    widths = {res: reading.shape(f"{layer}/weight", 4)[3] for res, layer in layers}
    return {"channel_base": max(res * width for res, width in widths.items()), "channel_max": max(widths.values())}
