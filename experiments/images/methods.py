"""The methods by the paper's row names, each as options of train.py, and the name of the method that a run's options say."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import torch

from experiments.images.planned_config import parse_options
from training import config

R1_WEIGHT = "{gamma}"  # in an option: the R1 weight of the setting
HALF = "{half}"  # in an option: half of the run's kimg
LAMBDA = 0.05
# What of the loss belongs to preset and setting. All else is the method's: a term that somebody adds tells its runs from StyleGAN2's by itself.
_NOT_THE_METHODS = {"class_name", "r1_gamma", "r2_gamma", "style_mixing_prob", "pl_weight", "pl_batch_shrink", "pl_decay"}


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of training.

    Attributes:
        name: of its row.
        options: of train.py, besides what preset, setting and budget say.
        what: in a few words.
    """

    name: str
    options: tuple[str, ...]
    what: str

    @property
    def augmentation(self) -> str:
        """noaug or ada."""
        return next(option.removeprefix("--aug=") for option in self.options if option.startswith("--aug="))

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")


def _pairing(weight: float = LAMBDA, **more: Any) -> tuple[str, ...]:
    return (f"--pairing-weight={weight:g}", *(f"--pairing-{name}={value}" for name, value in more.items()))


_RELATIVISTIC = ("--objective=relativistic", f"--r2-gamma={R1_WEIGHT}")
_WITHOUT_AUGMENTATION = (
    Method("StyleGAN2", (), "the baseline"),
    Method("Pairing-GAN", _pairing(), "pairing at the paper's lambda, 0.05"),
    Method("MS-GAN(+R1)", ("--ms-weight=1",), "mode seeking"),
    Method("Pairing-GAN(.01)", _pairing(0.01), "pairing at lambda 0.01"),
    Method("Pairing-GAN(.10)", _pairing(0.1), "pairing at lambda 0.10"),
    Method("Pairing-GAN(.20)", _pairing(0.2), "pairing at lambda 0.20"),
    Method("Pairing-GAN(.50)", _pairing(0.5), "pairing at lambda 0.50"),
    Method("R3GAN", _RELATIVISTIC, "R3GAN's objective: relativistic, R1 and R2 of one weight"),
    Method("R3GAN+Pairing", (*_RELATIVISTIC, *_pairing()), "R3GAN's objective with pairing"),
    Method("Pairing-GAN(shuffled)", _pairing(shuffle=1), "control: the pairing network sees the latents in another order"),
    Method("Pairing-GAN(tau .2)", _pairing(tau=0.2), "harder task: temperature 0.2"),
    Method("Pairing-GAN(tau .5)", _pairing(tau=0.5), "harder task: temperature 0.5"),
    Method("Pairing-GAN(w)", _pairing(space="w"), "the mapped latents are identified"),
    Method("Pairing-GAN(512)", _pairing(dim=512), "embeddings of length 512"),
    Method("Pairing-GAN(wide)", _pairing(width=4), "towers four times as wide"),
    Method("Pairing-GAN(coarse)", _pairing(view=8), "the pairing network sees 8x8 pixels, so that no fine detail tells latents apart"),
    Method("Pairing-GAN(features)", _pairing(features=1), "the pairing network sees the discriminator's features instead of pixels"),
    Method("Pairing-GAN(features .50)", _pairing(0.5, features=1), "the same at lambda 0.50"),
    Method("Pairing-GAN(+1024)", _pairing(extra=1024), "1,024 negatives more, drawn for every batch"),
    Method("Pairing-GAN(near .5)", _pairing(extra=64, near=0.5), "harder task: 64 negatives more, each half way from a latent of the batch"),
    Method("Pairing-GAN(near .2)", _pairing(extra=64, near=0.2), "harder task: the same, nearer"),
    Method("Pairing-GAN(warm-up)", _pairing(warmup=HALF), "weight rising from 0 over the first half"),
    Method("Pairing-GAN(binary)", _pairing(mode="binary"), "matched against permuted pairs, one by one"),
    Method("Pairing-GAN(adaptive)", _pairing(target=0.9), "weight steered to an identification accuracy of 0.9"),
)
METHODS: dict[str, Method] = {}
for _method in _WITHOUT_AUGMENTATION:
    METHODS[_method.name] = dataclasses.replace(_method, options=("--aug=noaug", *_method.options))
for _method in (method for method in _WITHOUT_AUGMENTATION if "--objective=relativistic" not in method.options):  # ADA goes by the sign of scores
    METHODS[f"{_method.name}-ADA"] = Method(f"{_method.name}-ADA", ("--aug=ada", *_method.options), f"{_method.what}, with ADA")


def recognise(options: Mapping[str, Any]) -> str:
    """The method that a run's training_options.json says: a name of METHODS, or what tells it from StyleGAN2."""
    found = _terms(options)
    for name, terms in _known_terms().items():
        if terms == found:
            return name
    plain = _known_terms()["StyleGAN2"]
    return ", ".join(["StyleGAN2", *(f"{name.replace('_', ' ')} {value}" for name, value in found.items() if plain.get(name) != value)])


@functools.cache
def _known_terms() -> dict[str, dict[str, Any]]:
    """What training_options.json would say of every method."""
    known = {}
    data = config.DataInfo("any", 50_000, 32, 3, 10, True)
    for name, method in METHODS.items():
        arguments = [option.format(gamma=1, half=1) for option in method.options]
        options, typed = parse_options(["--data=any", "--outdir=any", "--cond=1", "--cfg=cifar-small", *arguments])
        known[name] = _terms(config.resolve(options, typed, data, torch.device("cpu"), ops="reference"))
    return known


def _terms(options: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration is the method's; R1's weight and all that belongs to preset and data are not."""
    loss = options.get("loss_kwargs", {})
    terms = {name: value for name, value in loss.items() if name not in _NOT_THE_METHODS}
    terms["augmentation"] = "ada" if "ada_target" in options else f"fixed p={options['augment_p']:g}" if "augment_p" in options else "noaug"
    if loss.get("r2_gamma", 0) > 0:
        terms["R2"] = True
    if "P_kwargs" in options:
        terms["embedding"] = options["P_kwargs"].get("embed_dim")
        terms["tower_width"] = options["P_kwargs"].get("width", 1)
        terms["view"] = options["P_kwargs"].get("view")
        rates = options.get("P_opt_kwargs", {}).get("lr"), options.get("G_opt_kwargs", {}).get("lr")
        terms |= {"pairing_lr": rates[0]} if rates[0] != rates[1] else {}
    if "pairing_target" in options:
        terms["pairing_target"] = options["pairing_target"]
    if "pairing_warmup" in options:
        terms["pairing_warmup"] = True
    return terms
