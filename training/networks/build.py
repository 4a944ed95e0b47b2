"""Networks from records (class name, arguments, tensors) and back: the only place where a name in a file becomes a class."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dnnlib import EasyDict, UserError
from dnnlib.download import discard
from pairing.network import PairingNetwork
from torch_utils import checkpoint, legacy
from torch_utils.checkpoint import NetworkRecord
from torch_utils.image_size import LARGEST, written_size
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator

CLASSES: dict[str, type[nn.Module]] = {
    "training.networks.Generator": Generator,
    "training.networks.Discriminator": Discriminator,
    "pairing.network.PairingNetwork": PairingNetwork,
}
# What constructor arguments may be; the sizes that they imply are held against the stored tensors before anything is allocated.
MAX_NUMBER, MAX_LAYERS, MAX_TAPS = 1 << 24, 64, 64
FRACTIONS = ("conv_clamp", "lr_multiplier", "w_avg_beta")
WORDS = ("architecture", "activation", "low_precision")
BUILD_ERRORS = (TypeError, ValueError, LookupError, RuntimeError, AttributeError, ArithmeticError, AssertionError)
DATASET_KINDS = {"path": str, "use_labels": bool, "max_size": int, "xflip": bool, "random_seed": int}
CLASS_NAMES = {cls: name for name, cls in CLASSES.items()}


def network_record(module: nn.Module) -> NetworkRecord:
    """A network of this project as data: class name, constructor arguments and the state-dict's tensors (not copied)."""
    return NetworkRecord(CLASS_NAMES[type(module)], module.init_kwargs, dict(module.state_dict()))


def build_network(record: NetworkRecord, what: str = "the network") -> nn.Module:
    """The network that a record describes, on the CPU.

    Args:
        what: name for error messages.

    Raises:
        UserError: unknown class, arguments that the class does not take, or tensors of other names, shapes or kinds. The record's tensors are
            held against its arguments before memory is taken: arguments alone could ask for any amount.
    """
    if record.class_name not in CLASSES:
        raise UserError(f"{what} is a {record.class_name[:100]!r}, which is none of {', '.join(CLASSES)}")
    try:
        _check_arguments(record.kwargs)
        if odd := [name for name, tensor in record.tensors.items() if not tensor.is_floating_point()]:
            raise ValueError(f"its {odd[0]} is of {record.tensors[odd[0]].dtype}")
        with torch.device("meta"):  # where no memory is taken and no random number drawn
            module = CLASSES[record.class_name](**record.kwargs)
        if max(getattr(module, "img_size", (0, 0))) > LARGEST:  # without noise inputs no stored tensor need grow with it
            raise ValueError(f"its images are {module.img_size[1]}x{module.img_size[0]}, where {LARGEST} pixels are the most along a side")
        module.load_state_dict(record.tensors, assign=True)
        module.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in record.tensors.items()}, assign=True)
    except BUILD_ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what} does not fit {record.class_name}: {reason[:400]}") from error
    return module


def _check_arguments(kwargs: Mapping[str, Any]) -> None:
    """Raises ValueError at the first constructor argument that no network of this project has."""
    for name, value in kwargs.items():
        if isinstance(value, dict) and name.endswith("_kwargs"):
            _check_arguments(value)
        elif not (value is None or isinstance(value, bool) or _is_usable(name, value)):
            raise ValueError(f"its argument {name} is {str(value)[:40]!r}")


def _is_usable(name: str, value: Any) -> bool:
    """Whether a constructor argument is of a kind and size that its name goes with."""
    if name in WORDS:
        return isinstance(value, str)
    if name == "resample_filter":
        return _is_filter(value)
    if name == "start_grid":
        return isinstance(value, list | tuple) and len(value) == 2  # the networks look at the numbers
    if isinstance(value, float):
        return name in FRACTIONS
    most = MAX_LAYERS if name.endswith("layers") else LARGEST if name == "img_resolution" else MAX_NUMBER
    return isinstance(value, int) and 0 <= value <= most


def _is_filter(value: Any) -> bool:
    """Whether this is a row, or rows, of a few numbers."""
    rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    of_numbers = (isinstance(row, list) and len(row) <= MAX_TAPS and all(isinstance(tap, int | float) for tap in row) for row in rows)
    return len(rows) <= MAX_TAPS and all(of_numbers)


def _check_meta(meta: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Raises UserError where the arguments of the training set, which commands fall back on, are none."""
    found = meta.get("training_set_kwargs")
    kwargs = {} if found is None else found
    fits = isinstance(kwargs, dict) and all(kwargs.get(name) is None or isinstance(kwargs[name], kind) for name, kind in DATASET_KINDS.items())
    if not fits or (kwargs.get("resolution") is not None and written_size(kwargs["resolution"]) is None):
        raise UserError(f"{path} describes its training set by {str(found)[:100]!r}; path, use_labels and the like are expected")


def read_records(path: str | os.PathLike) -> tuple[dict[str, NetworkRecord], dict]:
    """(records by name, meta) of a snapshot of this project or of a StyleGAN2-ADA .pkl; runs no code from the file.

    Raises:
        UserError: missing, damaged or foreign file.
    """
    first = _beginning(path)
    is_pickle = not is_snapshot(path) and len(first) >= 2 and first[0] == 0x80 and 2 <= first[1] <= 5
    return legacy.read_pickle(path) if is_pickle else checkpoint.read_networks(path)


def is_snapshot(path: str | os.PathLike) -> bool:
    """Whether a file begins as a snapshot of this project does. Raises UserError where it cannot be read."""
    # safetensors: eight bytes with the header's length, then the header, which is JSON. Those eight may look like the start of a
    # pickle of protocol 2 or later (0x80 and its number), so the brace decides.
    return _beginning(path)[8:9] == b"{"


def _beginning(path: str | os.PathLike) -> bytes:
    try:
        with open(path, "rb") as handle:
            return handle.read(9)
    except OSError as error:
        raise UserError(f"cannot read the network {path}: {error.strerror}") from error


def _is_page(path: str | os.PathLike) -> bool:
    try:
        with open(path, "rb") as handle:
            return handle.read(256).lstrip()[:1] == b"<"
    except OSError:
        return False


def load_network(path: str | os.PathLike) -> EasyDict:
    """Reads the networks of a snapshot (.safetensors, or .pkl of StyleGAN2-ADA).

    Returns:
        EasyDict of modules by name ('G_ema', 'G', 'D', and 'P' if there is one), on the CPU, in eval mode, without
        gradients, plus 'meta': what else the file says (training_set_kwargs, ...).

    Raises:
        UserError: missing, damaged or foreign file, or networks of another architecture. A web page among the downloads, which servers send in
            place of a file, is removed.
    """
    try:
        records, meta = read_records(path)
    except UserError as error:
        if _is_page(path) and discard(pathlib.Path(path)):
            raise UserError(f"{path} is a web page, sent in place of a network; it is removed, so try again with the right address") from error
        raise
    _check_meta(meta, path)
    networks = EasyDict({name: build_network(record, f"{name} in {path}").eval().requires_grad_(False) for name, record in records.items()})
    networks.meta = meta
    return networks
