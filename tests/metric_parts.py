"""What tests of measuring are made of: a data set of random images, a generator that counts its images, and detectors that cost nothing."""

import contextlib

import numpy as np
import torch

from dnnlib import EasyDict
from metrics.detectors import trust_detector

RESOLUTION = 8


class Data:
    """A data set of random images with the interface of ImageFolderDataset."""

    def __init__(self, count=150, classes=3, xflip=False, seed=0):
        rng = np.random.default_rng(seed)
        self.images = rng.integers(0, 256, (count, 3, RESOLUTION, RESOLUTION), dtype=np.uint8)
        self.classes = rng.integers(0, classes, count)
        self.label_dim, self.resolution, self.xflip, self.read = classes, RESOLUTION, xflip, 0

    def __len__(self):
        return len(self.images) * (1 + self.xflip)

    def __getitem__(self, index):
        self.read += 1
        image = self.images[index % len(self.images)]
        return (image[:, :, ::-1] if index >= len(self.images) else image), self.get_label(index)

    def get_label(self, index):
        return self.get_labels(np.asarray([index]))[0]

    def get_labels(self, indices):
        return np.eye(self.label_dim, dtype=np.float32)[self.classes[indices % len(self.images)]]

    def get_details(self, index):
        return EasyDict(raw_idx=index % len(self.images), xflip=index >= len(self.images), raw_label=self.classes[index % len(self.images)])

    def fingerprint(self):
        return f"{hash((self.images.tobytes(), self.xflip)) & 0xFFFFFFFFFFFF:x}"


class TinyGenerator(torch.nn.Module):
    """Random images from latents and labels; counts what it makes."""

    def __init__(self, c_dim=3, z_dim=4):
        super().__init__()
        self.z_dim, self.c_dim, self.img_resolution, self.img_channels = z_dim, c_dim, RESOLUTION, 3
        rng = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(z_dim + c_dim, 3 * RESOLUTION**2, generator=rng) / 3)
        self.drop = torch.nn.Dropout(0.5)
        self.made, self.labels = 0, []

    def forward(self, z, c, truncation_psi=1, noise_mode="random"):
        assert noise_mode == "const"
        self.made += len(z)
        self.labels.append(c)
        return self.drop(torch.cat([z * truncation_psi, c], dim=1) @ self.weight).reshape(len(z), 3, RESOLUTION, RESOLUTION)


class Detector(torch.nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        pooled = torch.nn.functional.avg_pool2d(images.to(torch.float32) / 64, 4).flatten(1)
        if return_features:
            return pooled
        return pooled[:, :2]


class Classifier(torch.nn.Module):
    def forward(self, images: torch.Tensor, no_output_bias: bool = False) -> torch.Tensor:
        pooled = torch.nn.functional.avg_pool2d(images.to(torch.float32) / 16, 4).flatten(1)
        return torch.softmax(pooled if no_output_bias else pooled + 1000 * torch.arange(12), dim=1)


class Broken(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(torch.float32).flatten(1)[:, :5] / 0.0


class Perceptual(torch.nn.Module):
    """A detector with the arguments of StyleGAN2-ADA's vgg16."""

    def forward(self, images: torch.Tensor, resize_images: bool = True, return_features: bool = False, return_lpips: bool = False) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images.to(torch.float32) / 64, 4).flatten(1)


@contextlib.contextmanager
def one_thread():
    """Within: PyTorch computes with one thread, as the processes do whose figures are compared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


DETECTORS = (Detector, Classifier, Broken, Perceptual)


def write_detectors(folder):
    """Writes each detector as a TorchScript file, by its name in lower case."""
    for kind in DETECTORS:
        path = str(folder / f"{kind.__name__.lower()}.pt")
        torch.jit.script(kind()).save(path)
        trust_detector(path, remember=False)
    return folder


def results(lines):
    return {key: value for line in lines for key, value in line["results"].items()}
