"""Detectors by name and file: what they are called, what they return, and what is refused."""

import pytest
import torch

from dnnlib import UserError, download
from metrics import features, registry
from metrics.detectors import check_detector, detector_name, get_detector, torchscript


class Pooled(torch.nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        pooled = torch.nn.functional.avg_pool2d(images.to(torch.float32) / 64, 4).flatten(1)
        if return_features:
            return pooled
        return pooled[:, :2]


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    path = tmp_path_factory.mktemp("detectors") / "pooled.pt"
    torch.jit.script(Pooled()).save(str(path))
    return path


@pytest.mark.parametrize(("spec", "name"), [("a/my-net v2.pt", "my_net_v2"), ("https://host/x/vgg16.pt?a=b", "vgg16"), ("inception", "inception")])
def test_names_of_detectors(spec, name):
    assert detector_name(spec) == name


def test_a_detector_that_is_offline_is_told_before_work_starts(monkeypatch):
    def offline(url, **_):
        raise UserError(f"cannot download {url} (no connection)")

    monkeypatch.setattr(download, "fetch", offline)
    with pytest.raises(UserError, match=r"detector 'vgg16' is not available: cannot download .*vgg16\.pt.*--detector=embedded"):
        registry.check_detectors(registry.parse_metrics(["coverage"]))


def test_detectors_that_are_none(tmp_path, pooled):
    with pytest.raises(UserError, match="--detector=resnet is neither inception, vgg16 or embedded, nor a file"):
        check_detector("resnet")
    (tmp_path / "text.pt").write_text("no script")
    with pytest.raises(UserError, match=r"text\.pt is not a readable TorchScript file"):
        get_detector(str(tmp_path / "text.pt"), "cpu")
    with pytest.raises(UserError, match="detector pooled gives no class probabilities"):
        get_detector(str(pooled), "cpu", "probabilities")


def test_a_detector_must_return_one_row_per_image():
    class Pooling(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.to(torch.float32).mean(dim=(2, 3)).reshape(-1)

    network = torch.jit.script(Pooling())
    detector = features.Detector("pooling", "0", "features", "none", torchscript.runner(network, "pooling", "features"))
    with pytest.raises(UserError, match=r"detector pooling returned \[12\] for 4 images"):
        detector(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))


def test_grey_images_reach_the_detector_as_rgb(pooled):
    detector = get_detector(str(pooled), "cpu")
    grey = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(detector(grey), detector(grey.repeat(1, 3, 1, 1)))
    assert detector.feature_dim == 12
