"""Network files of StyleGAN2-ADA and StyleGAN3 (`--cfg=stylegan2`), read as data: class names, constructor arguments, tensors. Those of the
TensorFlow versions of StyleGAN2 and StyleGAN2-ADA are handed on to torch_utils.tensorflow_networks.

Such a .pkl holds source text and asks the reader to run it. Here nothing of it runs: torch_utils.safe_pickle reads the structure,
the builders below turn the few names that these files need into plain records, and every other name is refused. This
module knows no network class; training.networks builds modules from the records.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from dnnlib import UserError
from torch_utils.checkpoint import NetworkRecord
from torch_utils.pickle_builders import Builders
from torch_utils.safe_pickle import PickleMachine, RefusedPickle
from torch_utils.tensorflow_networks import TENSORFLOW_NETWORK, TensorFlowNetwork, tensorflow_records

MAX_DEPTH = 32
MAX_ENTRIES = 200_000

RECONSTRUCT = "torch_utils.persistence._reconstruct_persistent_obj"
NETWORKS = {"G": "Generator", "D": "Discriminator", "G_ema": "Generator"}
CLASS_MODULES = {"Generator": "training.networks", "Discriminator": "training.networks", "AugmentPipe": "training.augment"}
POSITIONAL = {
    "Generator": ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels"),
    "Discriminator": ("c_dim", "img_resolution", "img_channels"),
    "AugmentPipe": (),
}
PARTS = frozenset(
    [
        "SynthesisNetwork",
        "SynthesisBlock",
        "SynthesisLayer",
        "ToRGBLayer",
        "MappingNetwork",
        "FullyConnectedLayer",
        "Conv2dLayer",
        "DiscriminatorBlock",
        "DiscriminatorEpilogue",
        "MinibatchStdLayer",
    ]
)
# Constructor arguments by class, and by name of the nested dictionary.
_SYNTHESIS = frozenset(
    ["channel_base", "channel_max", "num_fp16_res", "conv_clamp", "architecture", "resample_filter", "use_noise", "activation", "fp16_channels_last"]
)
_MAPPING = frozenset(["num_layers", "embed_features", "layer_features", "activation", "lr_multiplier", "w_avg_beta"])
_ALLOWED = {
    "Generator": {*POSITIONAL["Generator"], "mapping_kwargs", "synthesis_kwargs"},
    "Discriminator": {
        *POSITIONAL["Discriminator"],
        "architecture",
        "channel_base",
        "channel_max",
        "num_fp16_res",
        "conv_clamp",
        "cmap_dim",
        "block_kwargs",
        "mapping_kwargs",
        "epilogue_kwargs",
    },
    "synthesis_kwargs": _SYNTHESIS,
    "mapping_kwargs": _MAPPING,
    "block_kwargs": frozenset(["activation", "resample_filter", "freeze_layers", "fp16_channels_last"]),
    "epilogue_kwargs": frozenset(["mbstd_group_size", "mbstd_num_channels", "activation"]),
}


def read_pickle(source: str | os.PathLike | bytes) -> tuple[dict[str, NetworkRecord], dict[str, Any]]:
    """Reads a network .pkl of StyleGAN2 or StyleGAN2-ADA, or of StyleGAN3 trained with `--cfg=stylegan2`, without running anything from it.

    Arguments that the file leaves to the defaults of the code that wrote it (they differ between the two) are filled in
    from the stored layers, so that the record says what the network is.

    Args:
        source: the file, or its bytes.

    Returns:
        (records, meta): records by name, of those of G, D, G_ema that the file holds, with class_name
        "training.networks.Generator" or "...Discriminator", all dimensions named in kwargs, and CPU tensors by state-dict name;
        meta = {"training_set_kwargs": dict or None, "augment_pipe": NetworkRecord or None}.

    Raises:
        UserError: the file is missing, damaged, asks for anything outside the list above, or holds another architecture.
    """
    data, shown = _read_bytes(source)
    try:
        table = Builders(len(data)).table() | {RECONSTRUCT: _Module, TENSORFLOW_NETWORK: TensorFlowNetwork}
        content = PickleMachine(table).load(data)
        return _interpret(content)
    except RefusedPickle as error:
        raise UserError(
            f"{shown} {error}; a network file of StyleGAN2, StyleGAN2-ADA or StyleGAN3 --cfg=stylegan2 is expected, nothing of it was run"
        ) from error


def _read_bytes(source: str | os.PathLike | bytes) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, "the network file"
    path = pathlib.Path(source)
    try:
        return path.read_bytes(), str(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


@dataclasses.dataclass
class _Module:
    """A persistent object of the file: `meta` with its class name and state, checked where it is used."""

    meta: Any

    @property
    def class_name(self) -> str:
        name = self.meta.get("class_name") if isinstance(self.meta, dict) else None
        if not isinstance(name, str):
            raise RefusedPickle("holds an object without a class name")
        return name

    @property
    def state(self) -> dict[str, Any]:
        state = self.meta.get("state") if isinstance(self.meta, dict) else None
        if not isinstance(state, dict):
            raise RefusedPickle(f"holds a {self.class_name} without its state")
        return state

    def group(self, name: str) -> dict[str, Any]:
        """One of _parameters, _buffers, _modules."""
        group = self.state.get(name)
        if not isinstance(group, dict) or not all(isinstance(key, str) and 0 < len(key) < 100 and "." not in key for key in group):
            raise RefusedPickle(f"holds a {self.class_name} whose {name} is not a table of names")
        return group


def _interpret(content: Any) -> tuple[dict[str, NetworkRecord], dict[str, Any]]:
    """Records and meta from the object on top of the pickle."""
    if isinstance(content, tuple) and content and all(isinstance(network, TensorFlowNetwork) for network in content):
        return tensorflow_records(content), {"training_set_kwargs": None, "augment_pipe": None}
    if not isinstance(content, dict):
        raise RefusedPickle(f"holds a {type(content).__name__}, not a table of networks")
    records = {}
    for name, class_name in NETWORKS.items():
        if isinstance(module := content.get(name), _Module):
            records[name] = _network_record(module, class_name)
        elif module is not None:
            raise RefusedPickle(f"holds a {type(module).__name__} as {name}")
    if not records:
        raise RefusedPickle(f"holds none of the networks {', '.join(NETWORKS)}")
    pipe = content.get("augment_pipe")
    if pipe is not None and not isinstance(pipe, _Module):
        raise RefusedPickle(f"holds a {type(pipe).__name__} as augment_pipe")
    training_set_kwargs = _Plain().convert(content.get("training_set_kwargs"))
    return records, {"training_set_kwargs": training_set_kwargs, "augment_pipe": None if pipe is None else _network_record(pipe, "AugmentPipe")}


def _network_record(module: _Module, expected_class: str) -> NetworkRecord:
    if module.class_name != expected_class:
        raise RefusedPickle(f"holds a {ascii(module.class_name)[1:-1][:100]} where a {expected_class} belongs")
    tensors: dict[str, torch.Tensor] = {}
    _collect_tensors(module, "", 0, tensors, [MAX_ENTRIES])
    kwargs = _constructor_arguments(module)
    if expected_class == "Generator":
        kwargs = _nest_synthesis(kwargs)
        synthesis = module.group("_modules").get("synthesis")
        _fill_defaults(kwargs.setdefault("synthesis_kwargs", {}), synthesis)
        _fill_mapping_defaults(kwargs.setdefault("mapping_kwargs", {}), module.group("_modules").get("mapping"))
    elif expected_class == "Discriminator":
        _fill_defaults(kwargs, module)
    if expected_class in _ALLOWED:
        _check_arguments(expected_class, kwargs)
    return NetworkRecord(f"{CLASS_MODULES[expected_class]}.{expected_class}", kwargs, tensors)


def _collect_tensors(module: _Module, prefix: str, depth: int, tensors: dict[str, torch.Tensor], budget: list[int]) -> None:
    """Walks parameters, buffers and sub-modules into `tensors`, refusing parts of other architectures by name."""
    if depth and module.class_name not in PARTS:
        raise RefusedPickle(f"holds a {ascii(module.class_name)[1:-1][:100]}, which is not part of this architecture")
    transient = module.state.get("_non_persistent_buffers_set", set())
    if not isinstance(transient, set):
        raise RefusedPickle(f"holds a {module.class_name} whose _non_persistent_buffers_set is no set")
    budget[0] -= 1
    for group in ("_parameters", "_buffers"):
        for name, value in module.group(group).items():
            if isinstance(value, torch.Tensor):
                if group == "_parameters" or name not in transient:
                    tensors[prefix + name] = value
            elif value is not None:
                raise RefusedPickle(f"holds a {type(value).__name__} as the tensor {prefix}{name}")
            budget[0] -= 1
    for name, child in module.group("_modules").items():
        if depth >= MAX_DEPTH or budget[0] < 0:
            raise RefusedPickle("nests its modules too deeply")
        if not isinstance(child, _Module):
            raise RefusedPickle(f"holds a {type(child).__name__} as the module {prefix}{name}")
        _collect_tensors(child, f"{prefix}{name}.", depth + 1, tensors, budget)


def _constructor_arguments(module: _Module) -> dict[str, Any]:
    """Positional and named arguments together, as plain data by name."""
    positional, named = module.state.get("_init_args", ()), module.state.get("_init_kwargs", {})
    names = POSITIONAL[module.class_name]
    if not isinstance(positional, tuple | list) or not isinstance(named, dict) or len(positional) > len(names):
        raise RefusedPickle(f"holds a {module.class_name} without usable constructor arguments")
    kwargs = _Plain().convert(named)
    for name, value in zip(names, positional):
        if name in kwargs:
            raise RefusedPickle(f"gives the argument {name} of its {module.class_name} twice")
        kwargs[name] = _Plain().convert(value)
    if missing := [name for name in names if type(kwargs.get(name)) is not int]:
        raise RefusedPickle(f"gives no whole number as the argument {missing[0]} of its {module.class_name}")
    return kwargs


def _nest_synthesis(kwargs: dict[str, Any]) -> dict[str, Any]:
    """StyleGAN3 keeps the synthesis arguments beside the others; here they live in synthesis_kwargs."""
    # How StyleGAN3 schedules its convolutions in training; it does not change what the network is.
    flat = {name: value for name, value in kwargs.items() if name != "fused_modconv_default"}
    nested = {name: flat.pop(name) for name in list(flat) if name in _SYNTHESIS}
    if nested:
        if not isinstance(flat.setdefault("synthesis_kwargs", {}), dict):
            raise RefusedPickle("holds a Generator whose synthesis_kwargs are not a dictionary")
        flat["synthesis_kwargs"] |= nested
    return flat


def _fill_defaults(kwargs: Any, parent: Any) -> None:
    """num_fp16_res and conv_clamp, where the arguments leave them open, as the stored blocks have them."""
    if not isinstance(kwargs, dict) or not isinstance(parent, _Module):
        raise RefusedPickle("holds a network without its blocks")
    blocks = [child for name, child in parent.group("_modules").items() if name[:1] == "b" and name[1:].isdecimal() and "use_fp16" in child.state]
    if blocks and "num_fp16_res" not in kwargs:
        kwargs["num_fp16_res"] = sum(block.state["use_fp16"] is True for block in blocks)
    layers = [block.group("_modules").get("conv1") for block in blocks]
    clamps = [layer.state["conv_clamp"] for layer in layers if layer is not None and "conv_clamp" in layer.state]
    if clamps and "conv_clamp" not in kwargs:
        kwargs["conv_clamp"] = _Plain().convert(clamps[0])


def _fill_mapping_defaults(kwargs: Any, mapping: Any) -> None:
    """w_avg_beta, where the arguments leave it open, as the stored mapping network has it."""
    if not isinstance(kwargs, dict) or not isinstance(mapping, _Module):
        raise RefusedPickle("holds a Generator without its mapping network")
    if isinstance(beta := mapping.state.get("w_avg_beta"), float):
        kwargs.setdefault("w_avg_beta", beta)


def _check_arguments(class_name: str, kwargs: Mapping[str, Any]) -> None:
    """Refuses arguments that these classes do not have: they belong to another architecture."""
    groups: Iterable[tuple[str, Any]] = [(class_name, kwargs), *((name, value) for name, value in kwargs.items() if name in _ALLOWED)]
    for group, values in groups:
        if not isinstance(values, dict):
            raise RefusedPickle(f"holds a {class_name} whose {group} are not a dictionary")
        if unknown := [name for name in values if name not in _ALLOWED[group]]:
            raise RefusedPickle(f"holds a {class_name} with the argument {ascii(unknown[0])[1:-1][:100]}, which belongs to another architecture")


class _Plain:
    """Turns the file's data into what JSON can hold, within bounds; tuples become lists."""

    def __init__(self) -> None:
        self._left = MAX_ENTRIES

    def convert(self, value: Any, depth: int = 0) -> Any:
        """The same data, copied. Raises RefusedPickle for anything else than numbers, text, lists and dictionaries."""
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            raise RefusedPickle("nests its arguments too deeply")
        if value is None or isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < 2**63):
            return value
        if isinstance(value, list | tuple):
            return [self.convert(item, depth + 1) for item in value]
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: self.convert(item, depth + 1) for key, item in value.items()}
        raise RefusedPickle(f"holds a {type(value).__name__} among its arguments")
