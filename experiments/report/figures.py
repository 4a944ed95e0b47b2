"""Names of figures: what they measure, and in which order they stand."""

from __future__ import annotations

ORDER = ("coverage", "precision", "recall", "density", "fid", "kid", "is", "gap", "spacing", "collision", "pairing")
WORDS = {"fid": "FID", "kid": "KID", "is": "Inception Score", "ppl": "Path length", "pairing": "Pairing accuracy"}
OF_CLASSES = {"_mean": ", mean of classes", "_worst": ", worst class"}  # what is told of single classes together
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


def rank(figure: str) -> tuple[int, str]:
    """What figures are sorted by."""
    kind = kind_of(figure)
    return (ORDER.index(kind) if kind in ORDER else len(ORDER), figure)


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
