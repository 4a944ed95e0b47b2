"""Names of figures: what they measure, and in which order they stand."""

from __future__ import annotations

from collections.abc import Iterable

ORDER = ("coverage", "precision", "recall", "density", "fid", "kid", "is", "gap", "spacing", "collision", "pairing")
WORDS = {"fid": "FID", "kid": "KID", "is": "Inception Score", "ppl": "Path length", "pairing": "Pairing accuracy"}
OF_CLASSES = {"_mean": ", mean of classes", "_worst": ", worst class"}  # what is told of single classes together
# What a page says of the figures on it, where a neighbourhood is a ball around an image that reaches to its k-th nearest one of its own kind.
GLOSSARY = {
    "coverage": "share of real images that have a generated one in their neighbourhood",
    "precision": "share of generated images that lie in the neighbourhood of a real one",
    "recall": "share of real images that lie in the neighbourhood of a generated one; it grows, too, where generated images only scatter",
    "density": "in how many neighbourhoods of real images a generated one lies, over k",
    "fid": "Fréchet distance between the features of real and of generated images, as two Gaussian distributions",
    "gap": "mean distance of a real image to the nearest generated one, over that to the nearest other real one",
    "spacing": "mean distance of a generated image to the nearest other generated one, over the same among real images",
    "collision": "share of pairs of far latents whose images are nearer to each other than a real image to its third neighbour",
    "pairing": "how often a fresh network tells which of 64 latents made an image",
}
# Of stats.jsonl: no measurements, but what a training says of itself. Their names have a slash.
SIGNALS = {
    "Loss/pairing/accuracy": "Pairing accuracy",
    "Loss/pairing/loss": "Pairing loss",
    "Loss/pairing/weight": "Pairing weight",
    "Loss/pairing/grad_norm": "Gradient of the pairing term at an image, weight included",
    "Loss/ms/grad_norm": "Gradient of the mode-seeking term at an image, weight included",
    "Loss/G/grad_norm": "Gradient of the adversarial term at an image",
    "Loss/scores/real": "D's score of real images",
    "Loss/scores/fake": "D's score of generated images",
    "Loss/signs/real": "r_t, the mean sign of D's scores of real images",
    "Loss/G/loss": "Generator's loss",
    "Loss/D/loss": "Discriminator's loss",
    "Loss/r1_penalty": "R1 penalty",
    "Loss/ms/loss": "Mode-seeking loss",
    "Progress/augment": "Augmentation probability",
}


def rank(figure: str) -> tuple[bool, int, str]:
    """What figures are sorted by; what is told of classes comes last."""
    kind = kind_of(figure)
    return ("classwise" in figure, ORDER.index(kind) if kind in ORDER else len(ORDER), figure)


def kind_of(figure: str) -> str:
    """What a figure of a protocol measures: "recall" of pr50k3_embedded_recall, "fid" of fid50k_full."""
    for kind in ("precision", "recall", "density", "coverage"):
        if kind in figure:
            return kind
    if figure.startswith("nearest"):
        return figure.rpartition("_")[2]
    return "".join(letter for letter in figure.split("_")[0] if not letter.isdigit()).removesuffix("k")


def title_of(figure: str) -> str:
    """A figure, column or signal as a heading."""
    if "/" in figure:
        return SIGNALS.get(figure, figure)
    kind = kind_of(figure)
    title = WORDS.get(kind, kind[:1].upper() + kind[1:])
    of_classes = next((words for ending, words in OF_CLASSES.items() if figure.endswith(ending)), "") if "classwise" in figure else ""
    return title + of_classes


def glossary_of(figures: Iterable[str]) -> dict[str, str]:
    """Title -> what it means, of those among the figures that have words."""
    kinds = {kind_of(figure).lower().split()[0]: None for figure in figures}
    return {title_of(kind): words for kind, words in GLOSSARY.items() if kind in kinds}
