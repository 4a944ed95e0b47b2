"""Transfer learning (--resume): a new run starts from trained networks, also of another resolution, label count, channel count or width.

What has the same name and shape in both is copied bit for bit, all else stays at its start, and the log says which is which. So it does
of Freeze-D (--freezed). Going on exactly with a run of one's own is something else: training.state and training.run_files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import torch
from torch import nn

from dnnlib import UserError
from dnnlib.download import fetch
from torch_utils.image_size import SQUARE
from training.networks import load_network
from training.state import TrainingState

NETWORKS = ("G", "D", "G_ema", "P")
NEEDED = ("G", "D", "G_ema")
OTHER_SHAPE, OTHER_GRID, ONLY_HERE, ONLY_THERE = "other shape", "other starting grid", "only here", "only there"
# What has a weight for each place of the starting grid: 4x6 and 6x4 have as many.
PLACED = ("b4.fc.weight", "image_head.0.weight")
# Settings that give tensors of one shape another meaning: (what it is called, how it is read off a module that has it).
MEANINGS = {
    "layers of the mapping network": ("num_layers", "mapping"),
    "learning rate factor of the mapping network": ("bias_gain", "mapping.fc0"),
}


@dataclasses.dataclass(frozen=True)
class Misfit:
    """A tensor that was not copied.

    Attributes:
        name: as in the state dict.
        there: its shape in the source; None where the source has no such tensor.
        here: its shape in the run; None where the run has no such tensor.
    """

    name: str
    there: tuple[int, ...] | None
    here: tuple[int, ...] | None

    @property
    def why(self) -> str:
        """OTHER_SHAPE, OTHER_GRID (equal shapes), ONLY_HERE or ONLY_THERE."""
        if self.there is None or self.here is None:
            return ONLY_HERE if self.there is None else ONLY_THERE
        return OTHER_GRID if self.there == self.here else OTHER_SHAPE

    @property
    def place(self) -> str:
        """The block that the tensor is part of, such as synthesis.b32 or mapping."""
        parts = self.name.split(".")
        return ".".join(parts[:2] if parts[0] == "synthesis" else parts[:1])


@dataclasses.dataclass(frozen=True)
class Copied:
    """What became of one network.

    Attributes:
        network: its name, such as G_ema.
        names: tensors copied.
        misfits: all others, of either side, in the order of the run's network and then of the source's.
        numbers: (copied, in all) single numbers of the run's network.
        meanings: settings that differ although shapes may agree, as (what, there, here).
    """

    network: str
    names: tuple[str, ...]
    misfits: tuple[Misfit, ...]
    numbers: tuple[int, int]
    meanings: tuple[tuple[str, object, object], ...] = ()


def copy_matching(source: nn.Module, target: nn.Module, network: str = "") -> Copied:
    """Copies tensors of equal name and shape, parameters and buffers, from one network to another; the others of `target` stay as they are.

    So do those that see the places of another starting grid, whatever their shape.
    """
    theirs, ours = source.state_dict(), target.state_dict()
    other_places = PLACED if getattr(source, "start_grid", SQUARE) != getattr(target, "start_grid", SQUARE) else ()
    copied, misfits = [], []
    with torch.no_grad():
        for name, tensor in ours.items():
            if name in theirs and theirs[name].shape == tensor.shape and name not in other_places:
                tensor.copy_(theirs[name])
                copied.append(name)
            else:
                misfits.append(Misfit(name, tuple(theirs[name].shape) if name in theirs else None, tuple(tensor.shape)))
    misfits += [Misfit(name, tuple(tensor.shape), None) for name, tensor in theirs.items() if name not in ours]
    numbers = sum(ours[name].numel() for name in copied), sum(tensor.numel() for tensor in ours.values())
    return Copied(network, tuple(copied), tuple(misfits), numbers, _other_meanings(source, target))


def _other_meanings(source: nn.Module, target: nn.Module) -> tuple[tuple[str, object, object], ...]:
    found = []
    for what, (attribute, place) in MEANINGS.items():
        values = [_read(module, f"{place}.{attribute}") for module in (source, target)]
        if None not in values and values[0] != values[1]:
            found.append((what, *values))
    return tuple(found)


def _read(module: nn.Module, path: str) -> object:
    value: object = module
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


def transfer(state: TrainingState, source: str) -> list[Copied]:
    """Starts the networks of a run from those of a file or URL (--resume).

    Args:
        state: of the run; its networks are changed in place.
        source: a snapshot of this project, or a .pkl of StyleGAN2-ADA or StyleGAN3 (`--cfg=stylegan2`), as file or URL.

    Raises:
        UserError: the source cannot be read, lacks G, D or G_ema, or has no weight that fits.
    """
    networks = load_network(fetch(source))
    for name in NEEDED:
        if name not in networks:
            raise UserError(f"--resume={source}: the file holds no network {name!r}; give a snapshot of a training")
    copies = []
    for name in NETWORKS:
        target = getattr(state, name)
        if name not in networks or target is None:
            continue
        copies.append(copy_matching(networks[name], target, name))
        # Filters and single numbers fit whatever the sizes; a network that has any size in common shares a weight.
        if not any(tensor.endswith("weight") for tensor in copies[-1].names):
            raise UserError(f"--resume={source}: no weight of its {name} fits this configuration; give its --cfg, or another network")
    return copies


def initialize_networks(state: TrainingState, source: str | None) -> list[str]:
    """Brings a new run to its start, from `source` if there is one.

    Returns:
        Lines to print: how much was copied, the table of what was not, what may work otherwise than it did there, and what --freezed keeps.

    Raises:
        UserError: as `transfer`.
    """
    copies = [] if source is None else transfer(state, source)
    return [*describe(copies), *describe_frozen(state.D, copies)]


# In words.


def describe(copies: Iterable[Copied]) -> list[str]:
    """What was copied and what was not, as lines of text; networks with the same outcome are told together."""
    outcomes: dict[tuple, list[Copied]] = {}
    for copied in copies:
        outcomes.setdefault((copied.names, copied.misfits, copied.meanings), []).append(copied)
    lines, rows, notes = [], [], []
    for group in outcomes.values():
        networks, one = ", ".join(copied.network for copied in group), group[0]
        total = len(one.names) + sum(misfit.here is not None for misfit in one.misfits)
        share = math.floor(1000 * one.numbers[0] / max(one.numbers[1], 1)) / 10  # 100% only where nothing is missing
        lines.append(f"Resumed {networks}: {len(one.names)} of {total} tensors, {share:.1f}% of the numbers")
        rows += _rows(networks, one.misfits)
        notes += [(networks, *meaning) for meaning in one.meanings]
    if rows:
        lines += _table([("not copied", "there", "here", "why"), *rows])
    for networks, what, there, here in notes:
        lines.append(f"Note: the {what} in {networks}: {there:g} there, {here:g} here; equal shapes were copied, but compute something else here.")
    return lines


def _rows(networks: str, misfits: Iterable[Misfit]) -> list[tuple[str, str, str, str]]:
    """One row per block and reason, with the largest tensor for its shapes; what the run has no use for is one row in all."""
    groups: dict[tuple[str, str], list[Misfit]] = {}
    for misfit in misfits:
        place = "" if misfit.why == ONLY_THERE else misfit.place
        groups.setdefault((place, misfit.why), []).append(misfit)
    rows = []
    for (_, why), members in groups.items():
        if why == ONLY_THERE:
            places = ", ".join(dict.fromkeys(member.place.removeprefix("synthesis.") for member in members))
            rows.append((f"{networks}: {places}", _count(len(members), "tensor"), "-", "only there, not used"))
            continue
        largest = max(members, key=lambda member: torch.Size(member.here).numel())
        others = f" and {len(members) - 1} more" if len(members) > 1 else ""
        stays = f"{why}, stays at its start"
        rows.append((f"{networks}: {largest.name}{others}", _shape(largest.there), _shape(largest.here), stays))
    return rows


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape)) or "1"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


# Freeze-D.


def frozen_layers(D: nn.Module) -> list[str]:
    """Layers of D that --freezed keeps, from the image side: their weights are buffers, so no optimiser knows them."""
    layers = {name: module for name, module in D.named_modules() if "weight" in dict(module.named_buffers(recurse=False))}
    return list(layers)


def describe_frozen(D: nn.Module, copies: Iterable[Copied]) -> list[str]:
    """Which layers of D are frozen, and which of them have learned nothing, as lines of text; none where none are frozen."""
    layers = frozen_layers(D)
    learned = {name for copied in copies if copied.network == "D" for name in copied.names}
    raw = [name for name in layers if f"{name}.weight" not in learned]
    lines = [f"Freeze-D: {_count(len(layers), 'layer')} of D will not be trained: {', '.join(layers)}"] if layers else []
    if raw:
        lines.append(f"Note: of these, nothing was copied into {', '.join(raw)}; --freezed keeps random weights there.")
    return lines
