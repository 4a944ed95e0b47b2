"""Networks from records (class name, arguments, tensors) and back: the only place where a name in a file becomes a class."""

from __future__ import annotations

import os

from torch import nn

from dnnlib import EasyDict, UserError
from pairing.network import PairingNetwork
from torch_utils import checkpoint, legacy
from torch_utils.checkpoint import NetworkRecord
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator

CLASSES: dict[str, type[nn.Module]] = {
    "training.networks.Generator": Generator,
    "training.networks.Discriminator": Discriminator,
    "pairing.network.PairingNetwork": PairingNetwork,
}
CLASS_NAMES = {cls: name for name, cls in CLASSES.items()}


def network_record(module: nn.Module) -> NetworkRecord:
    """A network of this project as data: class name, constructor arguments and the state-dict's tensors (not copied)."""
    return NetworkRecord(CLASS_NAMES[type(module)], module.init_kwargs, dict(module.state_dict()))


def build_network(record: NetworkRecord, what: str = "the network") -> nn.Module:
    """The network that a record describes, on the CPU.

    Args:
        what: name for error messages.

    Raises:
        UserError: unknown class, arguments that the class does not take, or tensors of other names or shapes.
    """
    if record.class_name not in CLASSES:
        raise UserError(f"{what} is a {record.class_name!r}, which is none of {', '.join(CLASSES)}")
    try:
        module = CLASSES[record.class_name](**record.kwargs)
        module.load_state_dict(record.tensors)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what} does not fit {record.class_name}: {reason[:400]}") from error
    return module


def read_records(path: str | os.PathLike) -> tuple[dict[str, NetworkRecord], dict]:
    """(records by name, meta) of a snapshot of this project or of a StyleGAN2-ADA .pkl; runs no code from the file.

    Raises:
        UserError: missing, damaged or foreign file.
    """
    try:
        with open(path, "rb") as handle:
            first = handle.read(9)
    except OSError as error:
        raise UserError(f"cannot read the network {path}: {error.strerror}") from error
    # safetensors: eight bytes with the header's length, then the header, which is JSON. Those eight may look like the start of a
    # pickle of protocol 2 or later (0x80 and its number), so the brace decides.
    is_pickle = first[8:9] != b"{" and len(first) >= 2 and first[0] == 0x80 and 2 <= first[1] <= 5
    return legacy.read_pickle(path) if is_pickle else checkpoint.read_networks(path)


def load_network(path: str | os.PathLike) -> EasyDict:
    """Reads the networks of a snapshot (.safetensors, or .pkl of StyleGAN2-ADA).

    Returns:
        EasyDict of modules by name ('G_ema', 'G', 'D', and 'P' if there is one), on the CPU, in eval mode, without
        gradients, plus 'meta': what else the file says (training_set_kwargs, ...).

    Raises:
        UserError: missing, damaged or foreign file, or networks of another architecture.
    """
    records, meta = read_records(path)
    networks = EasyDict({name: build_network(record, f"{name} in {path}").eval().requires_grad_(False) for name, record in records.items()})
    networks.meta = meta
    return networks
