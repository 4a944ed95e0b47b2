"""The --cfg presets: every number of StyleGAN2-ADA's, and the two small ones that this project adds."""

from __future__ import annotations

import dataclasses

from training.ada import ADA_KIMG


@dataclasses.dataclass(frozen=True)
class Preset:
    """Settings that --cfg stands for; None: chosen by resolution and number of GPUs (`for_data`)."""

    ref_gpus: int | None  # GPUs that the batch is made for; batch_gpu = batch / ref_gpus
    kimg: int
    batch: int | None
    mbstd: int | None
    fmaps: float | None  # channel_base = fmaps * 32768
    lrate: float | None
    gamma: float | None
    ema_kimg: float | None
    ema_ramp: float | None
    map_layers: int
    channel_max: int = 512
    z_dim: int = 512
    w_dim: int = 512
    regularize_path: bool = True  # path length and style mixing
    d_architecture: str = "resnet"
    ada_kimg: int = ADA_KIMG
    map_lr: float | None = None  # learning rate of G's mapping network relative to the rest; None: the network's default, 0.01
    d_map_layers: int | None = None  # depth of D's label embedding; None: the network's default, 8


PRESETS: dict[str, Preset] = {
    "auto": Preset(None, 25000, None, None, None, None, None, None, 0.05, 2),
    "stylegan2": Preset(8, 25000, 32, 4, 1, 0.002, 10, 10, None, 8),
    "paper256": Preset(8, 25000, 64, 8, 0.5, 0.0025, 1, 20, None, 8),
    "paper512": Preset(8, 25000, 64, 8, 1, 0.0025, 0.5, 20, None, 8),
    "paper1024": Preset(8, 25000, 32, 4, 1, 0.002, 2, 10, None, 8),
    "cifar": Preset(2, 100000, 64, 32, 1, 0.0025, 0.01, 500, 0.05, 2, regularize_path=False, d_architecture="orig"),
    # A 64th of cifar's arithmetic: every layer 64 wide instead of 512.
    "cifar-small": Preset(
        1, 1000, 64, 32, 1 / 16, 0.0025, 0.01, 500, 0.05, 2, channel_max=64, regularize_path=False, d_architecture="orig"
    ),
    # The embedded digits on a laptop CPU in minutes.
    "demo": Preset(
        1, 72, 32, 8, 1 / 64, 0.0025, 0.1, 10, 0.05, 2, channel_max=64, z_dim=64, w_dim=64,
        regularize_path=False, d_architecture="orig", ada_kimg=100, map_lr=0.1, d_map_layers=0,
    ),
}  # fmt: skip


def for_data(preset: Preset, resolution: int, gpus: int) -> Preset:
    """The preset with all its open values filled in for images of as many pixels as a square of edge `resolution`, on `gpus` GPUs."""
    if preset.batch is not None:
        return preset
    each = 1 << max((4096 // resolution).bit_length() - 1, 0)  # a power of two also where the image is no square of such an edge
    batch = max(min(gpus * min(each, 32), 64), gpus)
    if batch % gpus:  # as StyleGAN2-ADA for powers of two; else the largest batch below that deals out whole minibatch-std groups
        each = batch // gpus
        batch = gpus * (each - each % 4 if each > 4 else each)
    return dataclasses.replace(
        preset,
        ref_gpus=gpus,
        batch=batch,
        mbstd=min(batch // gpus, 4),
        fmaps=1 if resolution >= 512 else 0.5,
        lrate=0.002 if resolution >= 1024 else 0.0025,
        gamma=0.0002 * resolution**2 / batch,
        ema_kimg=batch * 10 / 32,
    )


def preset_table() -> str:
    """Every preset as a Markdown table, for docs/options.md."""
    heads = ["`--cfg`", "kimg", "batch", "GPUs it is for", "R1 weight", "learning rate", "EMA, kimg", "EMA ramp-up", "std group", "maps"]
    lines = ["| " + " | ".join([*heads, "mapping layers", "path length, style mixing", "D"]) + " |", "|" + "---|" * (len(heads) + 3)]
    for name, p in PRESETS.items():
        base = "by size" if p.fmaps is None else f"{p.fmaps * 32768:g}"
        numbers = [p.batch, p.ref_gpus, p.gamma, p.lrate, p.ema_kimg]
        batch, *rest = ["by size" if number is None else f"{number:g}" for number in numbers]
        ramp = "none" if p.ema_ramp is None else f"{p.ema_ramp:g}"
        cells = [f"`{name}`", f"{p.kimg:,}", batch, *rest, ramp, "by size" if p.mbstd is None else str(p.mbstd), f"{base}, {p.channel_max}"]
        cells += [str(p.map_layers), "on" if p.regularize_path else "off", p.d_architecture]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
