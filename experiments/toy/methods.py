"""The methods that are compared: which terms enter the losses. Their weights are the table's (`Settings`), the same for all methods."""

from __future__ import annotations

import dataclasses

from dnnlib import UserError


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
        name: as in the paper's tables.
        relativistic: relativistic pairing objective (RpGAN) instead of the logistic one.
        r1, r2: gradient penalty on real and on generated samples.
        pairing: "infonce", "binary" or "" for none.
        mode_seeking: mode-seeking loss of the generator.
        pack: samples that the discriminator judges together (PacGAN).
        adaptive: the pairing weight is steered by the identification accuracy instead of fixed.
    """

    name: str
    relativistic: bool = False
    r1: bool = False
    r2: bool = False
    pairing: str = ""
    mode_seeking: bool = False
    pack: int = 1
    adaptive: bool = False


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that the rows of one table share.

    Attributes:
        steps: generator steps, and as many of the discriminator.
        batch: samples per step and model.
        z_dim: dimensions of the standard normal latent.
        lr, beta1, beta2: Adam, for all networks.
        r1_gamma: weight of the gradient penalties, gamma / 2 * |gradient|^2: R1's, and R2's where a method has both, as R3GAN does.
        pairing_weight, tau, embed_dim: lambda, temperature and embedding length of pairing.
        pairing_target: identification accuracy that the adaptive weight keeps.
        ms_weight: weight of the mode-seeking loss.
    """

    steps: int = 6000
    batch: int = 128
    z_dim: int = 2
    lr: float = 1e-3
    beta1: float = 0.5
    beta2: float = 0.9
    r1_gamma: float = 0.1
    pairing_weight: float = 0.05
    tau: float = 0.1
    embed_dim: int = 16
    pairing_target: float = 0.5
    ms_weight: float = 1.0


_ALL = (
    Method("GAN"),
    Method("GAN+R1", r1=True),
    Method("GAN+Pairing", pairing="infonce"),
    Method("GAN+Pairing+R1", pairing="infonce", r1=True),
    Method("GAN+Pairing(adaptive)+R1", pairing="infonce", r1=True, adaptive=True),
    Method("GAN+Pairing(binary)+R1", pairing="binary", r1=True),
    Method("MS-GAN", mode_seeking=True),
    Method("MS-GAN+R1", mode_seeking=True, r1=True),
    Method("RpGAN", relativistic=True),
    Method("RpGAN+Pairing", relativistic=True, pairing="infonce"),
    Method("R3GAN", relativistic=True, r1=True, r2=True),
    Method("R3GAN+Pairing", relativistic=True, r1=True, r2=True, pairing="infonce"),
    Method("PacGAN2", pack=2),
)
METHODS = {method.name: method for method in _ALL}


def find_method(name: str) -> Method:
    """The method of that name. Raises UserError if there is none."""
    if name not in METHODS:
        raise UserError(f"there is no method {name!r}; choose among {', '.join(METHODS)}")
    return METHODS[name]
