"""Trains the embedded detector: `python -m metrics.detectors.train_embedded --data=FOLDER --out=embedded.safetensors`.

FOLDER holds `train` and `test`, each with one sub-folder of 32x32 images per class. The network itself and its loading live in embedded.py.
The run is on the CPU and repeats exactly with the same seed, number of threads, processor and version of torch. The weights that are kept are those
of the last epoch; the test split chooses nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import pathlib
import time

import click
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from dnnlib import UserError, atomic_path
from dnnlib.cli import run_command
from metrics.detectors.embedded import NUM_CLASSES, RESOLUTION, EmbeddedDetector, load_embedded, prepare, save_embedded, weights_digest

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
EVALUATION_BATCH = 500
WHITENING_FLOOR = 1e-3  # variance, where the pixels have about one


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights besides the data."""

    epochs: int = 12  # passes over the training split
    batch: int = 256  # images per step; the rest of an epoch that fills no batch is left out
    lr: float = 0.25  # peak learning rate of the one-cycle schedule
    warmup: float = 0.2  # part of the steps in which the rate rises, linearly, from zero; it falls linearly to zero after
    momentum: float = 0.9  # of SGD with Nesterov's correction
    weight_decay: float = 5e-4  # on convolution and linear weights only
    label_smoothing: float = 0.1
    pad: int = 4  # pixels of reflection padding for the random crop
    ema_decay: float = 0.99  # per step, of the averaged weights that are kept
    precision: str = "bf16"  # arithmetic of the training steps; evaluation is always float32
    seed: int = 0
    threads: int = 2


@dataclasses.dataclass
class Split:
    """One half of the data, resident in memory."""

    images: torch.Tensor  # uint8 [N, 32, 32, 3]
    labels: torch.Tensor  # int64 [N]
    classes: list[str]  # in label order
    digest: str  # SHA-256 over names and bytes of the files


def load_split(folder: pathlib.Path) -> Split:
    """Decodes the images of one split, classes and files in alphabetical order.

    Raises:
        UserError: not ten class folders, a class without images, or a file that is no 32x32 image.
    """
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if len(classes) != NUM_CLASSES:
        raise UserError(f"--data: {folder} should hold {NUM_CLASSES} folders of images, one per class, but {len(classes)} were found")
    digest, arrays, labels = hashlib.sha256(), [], []
    for label, name in enumerate(classes):
        files = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(f"--data: {folder / name} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        for path in files:
            digest.update(f"{name}/{path.name}\0".encode())
            digest.update(path.read_bytes())
            arrays.append(_decode(path))
        labels += [label] * len(files)
    return Split(torch.from_numpy(np.stack(arrays)), torch.tensor(labels), classes, digest.hexdigest())


def _decode(path: pathlib.Path) -> np.ndarray:
    """One image file as uint8 [32, 32, 3]."""
    try:
        with PIL.Image.open(path) as image:
            array = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise UserError(f"--data: {path} is not a readable image ({error})") from error
    if array.shape != (RESOLUTION, RESOLUTION, 3):
        raise UserError(f"--data: {path} is {array.shape[1]}x{array.shape[0]} pixels, but {RESOLUTION}x{RESOLUTION} is needed")
    return array


class Augmenter:
    """Random crops of the reflection-padded training images, mirrored half of the time."""

    def __init__(self, images: torch.Tensor, recipe: Recipe, generator: torch.Generator):
        pad = recipe.pad
        self.padded = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect"))
        self.recipe = recipe
        self.generator = generator

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        """The images of `indices` [N], each with its own draw, as the network's input: float32 [N, 3, 32, 32]."""
        count, line = len(indices), torch.arange(RESOLUTION)
        rows = line + self._integers(2 * self.recipe.pad + 1, count)
        offsets = self._integers(2 * self.recipe.pad + 1, count)
        columns = torch.where(self._integers(2, count) == 1, line.flip(0), line) + offsets
        pixels = self.padded[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
        return prepare(pixels.permute(0, 3, 1, 2))

    def _integers(self, stop: int, count: int) -> torch.Tensor:
        return torch.randint(stop, (count, 1), generator=self.generator)


@torch.no_grad()
def initialize(network: EmbeddedDetector, images: torch.Tensor) -> None:
    """Fixes the first convolution to whiten the patches of `images` (uint8 [N, 32, 32, 3]) and lets every other one start by passing its input on."""
    network.stem.weight.copy_(whitening_filters(images, len(network.stem.weight)))
    network.stem.requires_grad_(False)
    for unit in network.trunk:
        torch.nn.init.dirac_(unit.conv.weight[: unit.conv.in_channels])


def whitening_filters(images: torch.Tensor, count: int) -> torch.Tensor:
    """`count` 3x3 filters [count, 3, 3, 3]: the leading principal directions of the patches, scaled to about unit deviation, and their negatives.

    Both signs are there because a ReLU follows. Directions of little variance, which hold noise and compression, are damped by WHITENING_FLOOR.
    """
    size, taps = 3, 27
    moment, patches = torch.zeros(taps, taps, dtype=torch.float64), 0
    for part in images[::10].split(500):
        columns = F.unfold(prepare(part.permute(0, 3, 1, 2)), size).transpose(0, 1).reshape(taps, -1).double()
        moment += columns @ columns.t()
        patches += columns.shape[1]
    values, vectors = torch.linalg.eigh(moment / patches)
    leading = slice(taps - count // 2, taps)
    filters = (vectors[:, leading] / (values[leading] + WHITENING_FLOOR).sqrt()).t().reshape(count // 2, 3, size, size)
    return torch.cat([filters, -filters]).float()


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Rate of step `step` of `steps`: a linear rise to the peak, then a linear fall to zero."""
    top = max(1.0, recipe.warmup * steps)
    position = step + 1
    return recipe.lr * (position / top if position < top else max(0.0, (steps - step) / (steps - top + 1)))


def build_optimizer(network: EmbeddedDetector, recipe: Recipe) -> torch.optim.SGD:
    """SGD with weight decay on the weights that multiply, none on biases and normalization."""
    learned = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in learned if p.ndim > 1]
    others = [p for p in learned if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True)


@torch.no_grad()
def update_average(average: EmbeddedDetector, network: EmbeddedDetector, decay: float) -> None:
    """Moves parameters and running statistics of `average` towards those of `network`."""
    for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1.0 - decay)


def accuracy(detector: EmbeddedDetector, split: Split) -> float:
    """Part of the images of `split` whose most probable class is theirs, 0 to 1, in float32 and eval mode."""
    hits = 0
    for start in range(0, len(split.labels), EVALUATION_BATCH):
        images = split.images[start : start + EVALUATION_BATCH].permute(0, 3, 1, 2)
        hits += int((detector.probabilities(images).argmax(dim=1) == split.labels[start : start + EVALUATION_BATCH]).sum())
    return hits / len(split.labels)


def train(train_split: Split, test_split: Split, recipe: Recipe) -> EmbeddedDetector:
    """Trains from random weights and prints one line per epoch. Returns the averaged network, folded, in eval mode."""
    steps_per_epoch = len(train_split.labels) // recipe.batch
    if steps_per_epoch == 0:
        raise UserError(f"--batch: {recipe.batch} is more than the {len(train_split.labels)} training images")
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = EmbeddedDetector(norm=True).to(memory_format=torch.channels_last).train()
    initialize(network, train_split.images)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = build_optimizer(network, recipe)
    augmenter = Augmenter(train_split.images, recipe, generator)
    start_time = time.time()
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(train_split.labels), generator=generator)
        losses = []
        for index in range(steps_per_epoch):
            rate = learning_rate(epoch * steps_per_epoch + index, recipe.epochs * steps_per_epoch, recipe)
            chosen = order[index * recipe.batch : (index + 1) * recipe.batch]
            losses.append(train_step(network, optimizer, augmenter.batch(chosen), train_split.labels[chosen], rate, recipe))
            update_average(average, network, recipe.ema_decay)
        score = accuracy(average.folded(), test_split)
        seconds = time.time() - start_time
        print(f"epoch {epoch + 1}/{recipe.epochs}  loss {np.mean(losses):.4f}  test accuracy {score:.4f}  {seconds:.0f} s", flush=True)
    return average.folded()


def train_step(network: EmbeddedDetector, optimizer: torch.optim.SGD, x: torch.Tensor, labels: torch.Tensor, rate: float, recipe: Recipe) -> float:
    """One step of SGD at learning rate `rate`; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
        logits = network.head(network.pooled(x))
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def run(data: pathlib.Path, out: pathlib.Path, recipe: Recipe) -> None:
    """Trains on `data`, writes `out` whole or not at all, and prints the accuracy of the weights as they were stored."""
    if out.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
        raise UserError(f"--out: {out} cannot be written; it should name a file in a folder that exists and is writable")
    torch.set_num_threads(recipe.threads)
    train_split, test_split = load_split(data / "train"), load_split(data / "test")
    if train_split.classes != test_split.classes:
        raise UserError(f"--data: the class folders of {data / 'train'} and {data / 'test'} differ in name")
    print(f"{len(train_split.labels)} training images, {len(test_split.labels)} test images, classes {', '.join(train_split.classes)}", flush=True)
    detector = train(train_split, test_split, recipe)
    meta = {
        "classes": train_split.classes,
        "recipe": dataclasses.asdict(recipe),
        "torch": torch.__version__,
        "data": {
            "train_images": len(train_split.labels),
            "train_sha256": train_split.digest,
            "test_images": len(test_split.labels),
            "test_sha256": test_split.digest,
        },
    }
    with atomic_path(out) as temporary:
        # Accuracy is a property of the stored numbers, so it is measured on them and the file is written again with it.
        save_embedded(detector, temporary, meta)
        score = accuracy(load_embedded(path=temporary), test_split)
        save_embedded(detector, temporary, {**meta, "test_accuracy": score})
    print(f"wrote {out}: {out.stat().st_size:,} bytes, test accuracy {score:.4f}, SHA-256 {weights_digest(out)}")


_DEFAULTS = Recipe()
_PATH = click.Path(path_type=pathlib.Path)


@click.command()
@click.option("--data", help="Folder with train/ and test/, each with a folder of images per class", type=_PATH, required=True)
@click.option("--out", help="Weights file to write", type=_PATH, required=True)
@click.option("--epochs", type=click.IntRange(min=1), default=_DEFAULTS.epochs, show_default=True)
@click.option("--batch", type=click.IntRange(min=2), default=_DEFAULTS.batch, show_default=True)
@click.option("--lr", help="Peak learning rate", type=click.FloatRange(min=0, min_open=True), default=_DEFAULTS.lr, show_default=True)
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default=_DEFAULTS.precision, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=_DEFAULTS.seed, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=_DEFAULTS.threads, show_default=True)
def main(data: pathlib.Path, out: pathlib.Path, **options) -> None:
    """Train the embedded detector on a folder of 32x32 images in ten classes."""
    run(data, out, Recipe(**options))


if __name__ == "__main__":
    run_command(main)
