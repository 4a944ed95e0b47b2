"""Can the images of a conditional generator be read? A plain classifier, fitted on the real images, names generated ones.

    python -m experiments.readability --network=runs/00000-.../network-snapshot-000048.safetensors --data=datasets/digits.zip

The classifier is a support vector machine on raw pixels: good for small, centred pictures such as digits, and no measure of variety, since one
perfect picture per class gives a share of 1. Variety is what the metrics of calc_metrics.py are for.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import click
import numpy as np
import torch
from sklearn.svm import SVC

from dnnlib import UserError, atomic_write_text
from dnnlib.cli import run_command
from dnnlib.download import fetch
from metrics.features import made_size
from metrics.runs import OPTIONS_FILE
from training.config import choose_device
from training.dataset import ImageFolderDataset, load_array
from training.networks import load_network
from training.options import DEVICES
from training.sampling import Renderer

RESULT_FILE = "readability.json"
SVM_PENALTY = 10.0  # names 97% of unseen digits, scikit-learn's default of 1 names 96%
HELD_OUT = 5  # one image of this many is kept back for the classifier's own accuracy


@dataclasses.dataclass(frozen=True)
class Readability:
    """How well a classifier reads images of known classes; shares are 0 to 1."""

    share: float  # of all images, named as asked
    per_class: list[float]  # the same for each class
    samples: int
    classifier_accuracy: float  # share of real images named rightly by a classifier that has not seen them: what to expect at best


def real_images(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, C, H, W] and classes int64 [N] of a labelled data set.

    Raises:
        UserError: a set that cannot be read, has no classes, only one of them, or a class with fewer than 5 images.
    """
    dataset = ImageFolderDataset(path, use_labels=True)
    try:
        if not dataset.has_onehot_labels or dataset.label_dim < 2:
            raise UserError(f"--data={path}: a classifier needs at least two classes, but the labels of the set are not so")
        images = load_array(dataset)
        classes = dataset.get_labels(np.arange(len(dataset))).argmax(axis=1)
    finally:
        dataset.close()
    rarest = int(np.bincount(classes).argmin())
    if (count := int((classes == rarest).sum())) < HELD_OUT:
        raise UserError(f"--data={path}: class {rarest} has {count} images, but the classifier needs at least {HELD_OUT} of each")
    return images, classes


def fit_classifier(images: np.ndarray, classes: np.ndarray) -> SVC:
    """A support vector machine on the pixels of uint8 images [N, C, H, W]; no random numbers are drawn."""
    return SVC(C=SVM_PENALTY).fit(_pixels(images), classes)


def held_out_accuracy(images: np.ndarray, classes: np.ndarray) -> float:
    """Share of real images that a classifier fitted without them names rightly; every fifth image of each class is kept back."""
    kept_back = np.zeros(len(classes), dtype=bool)
    for index in np.unique(classes):
        kept_back[np.flatnonzero(classes == index)[HELD_OUT - 1 :: HELD_OUT]] = True
    classifier = fit_classifier(images[~kept_back], classes[~kept_back])
    return float((classifier.predict(_pixels(images[kept_back])) == classes[kept_back]).mean())


def named_as_asked(classifier: SVC, images: np.ndarray, asked: np.ndarray) -> tuple[float, list[float]]:
    """Share of uint8 images [N, C, H, W] whose class the classifier names as `asked` [N], and the same for each asked class in order."""
    right = classifier.predict(_pixels(images)) == asked
    return float(right.mean()), [float(right[asked == index].mean()) for index in np.unique(asked)]


def conditional_samples(G: torch.nn.Module, count: int, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [count, C, H, W] of seeds 0 to count - 1, untruncated, with the classes asked for in turn, int64 [count]."""
    asked = np.arange(count) % G.c_dim
    pictures = list(Renderer(G, device, batch=50).render_seeds(list(range(count)), asked.tolist()))
    return torch.stack(pictures).numpy(), asked


def measure(G: torch.nn.Module, images: np.ndarray, classes: np.ndarray, samples: int, device: torch.device) -> Readability:
    """Fits the classifier on real images uint8 [N, C, H, W] with classes [N] and lets it name `samples` images of a conditional generator.

    Raises:
        UserError: generator and data set differ in classes or image shape.
    """
    made = G.c_dim, [G.img_channels, *made_size(G)]
    real = int(classes.max()) + 1, list(images.shape[1:])
    if made != real:
        raise UserError(f"--network makes {made[0]} classes of images {made[1]}, --data holds {real[0]} classes of {real[1]}; give its own")
    fakes, asked = conditional_samples(G, samples, device)
    share, per_class = named_as_asked(fit_classifier(images, classes), fakes, asked)
    return Readability(share, per_class, samples, held_out_accuracy(images, classes))


def describe(result: Readability) -> str:
    """The result in two sentences and one line per class."""
    lines = [
        f"{result.share:.1%} of {result.samples} generated images are named as asked.",
        f"The classifier names {result.classifier_accuracy:.1%} of real images that it has not seen.",
    ]
    return "\n".join(lines + [f"  class {index}: {share:.0%}" for index, share in enumerate(result.per_class)])


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255


@click.command()
@click.option("--network", help="Snapshot of a conditional generator, as file or URL", metavar="FILE|URL", required=True)
@click.option("--data", help="The labelled images that it learned, folder or zip", metavar="PATH", required=True)
@click.option("--samples", help="Images to generate, the classes in turn", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--device", help="Where to generate", type=click.Choice(DEVICES), default="auto", show_default=True)
def main(network: str, data: str, samples: int, device: str) -> None:
    """Tells which share of a conditional generator's images a plain classifier names as asked.

    Writes readability.json beside a network that lies in its run folder.
    """
    where = choose_device(device)
    networks = load_network(fetch(network))
    if "G_ema" not in networks or networks.G_ema.c_dim == 0:
        raise UserError(f"--network={network} holds no conditional generator; give a snapshot of a run with --cond=1")
    if samples < (classes := networks.G_ema.c_dim):
        raise UserError(f"--samples={samples} is less than one for each of the {classes} classes")
    result = measure(networks.G_ema.to(where), *real_images(data), samples, where)
    print(describe(result))
    folder = pathlib.Path(network).parent
    if (folder / OPTIONS_FILE).is_file():
        line = {**dataclasses.asdict(result), "network": pathlib.Path(network).name}
        atomic_write_text(folder / RESULT_FILE, json.dumps(line, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
