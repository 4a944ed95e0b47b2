"""Detectors by name and file: what they are called, what they return, what images become on the way, and what is refused."""

import pickle
import zipfile

import pytest
import torch

from dnnlib import UserError, download
from metrics import collectors, features
from metrics.detectors import LPIPS_RESIZE, OUTPUTS, check_detector, detector_name, get_detector, torchscript, trust_detector
from metrics.detectors.images import to_rgb_float, to_rgb_uint8


class Pooled(torch.nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        pooled = torch.nn.functional.avg_pool2d(images.to(torch.float32) / 64, 4).flatten(1)
        if return_features:
            return pooled
        return pooled[:, :2]


class Perceptual(torch.nn.Module):
    """The arguments of StyleGAN2-ADA's vgg16.pt, an output of its own for each."""

    def forward(self, images: torch.Tensor, resize_images: bool = True, return_features: bool = False, return_lpips: bool = False) -> torch.Tensor:
        if resize_images:
            images = torch.nn.functional.interpolate(images.to(torch.float32), size=(4, 4))
        if return_lpips:
            return images.flatten(1) / 255
        if return_features:
            return images.flatten(1)[:, :7].to(torch.float32)
        return images.to(torch.float32).mean(dim=(2, 3))


class Odd(torch.nn.Module):
    """Fails on images of fewer than 8 rows; otherwise returns what is no matrix of N rows."""

    def __init__(self, kind: int):
        super().__init__()
        self.kind = kind

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.to(torch.float32).flatten(1)
        if self.kind == 0:
            return rows.reshape(-1)
        if self.kind == 1:
            return images
        if self.kind == 2:
            return rows[1:]
        if self.kind == 3:
            return rows[:, :0]
        return torch.nn.functional.avg_pool2d(images.to(torch.float32), 8).flatten(1)


class Pair(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, images


class NoImages(torch.nn.Module):
    def forward(self) -> int:
        return 1


class NoForward(torch.nn.Module):
    @torch.jit.export
    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images


def random_images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def save(module, path):
    torch.jit.script(module).save(str(path))
    trust_detector(str(path), remember=False)
    return path


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """A folder with pooled.pt and a stand-in for vgg16.pt."""
    folder = tmp_path_factory.mktemp("detectors")
    save(Pooled(), folder / "pooled.pt")
    save(Perceptual(), folder / "vgg16.pt")
    return folder


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The downloads folder of a cache of its own, without mirrors and without waiting."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("DNNLIB_MIRRORS", raising=False)
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    return download.cache_dir("downloads")


@pytest.fixture
def site(site, cache):
    """As everywhere, with such a cache."""
    return site


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("a/my-net v2.pt", "my_net_v2"),
        ("https://host/x/vgg16.pt?a=b", "vgg16"),
        ("inception", "inception"),
        ("a/inception.pt", "inception_custom"),
        ("embedded.pt", "embedded_custom"),
    ],
)
def test_names_of_detectors(spec, name):
    assert detector_name(spec) == name


def test_a_detector_that_is_offline_is_told_before_work_starts(cache, monkeypatch):
    monkeypatch.setattr(torchscript, "BASE_URLS", ("http://127.0.0.1:9/metrics/",))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    with pytest.raises(UserError) as error:
        check_detector("vgg16")
    target = download.cached_path("http://127.0.0.1:9/metrics/vgg16.pt")
    for part in ("detector 'vgg16' is not available", "no connection", f"save the file by hand as {target}", "DNNLIB_MIRRORS", "--detector=embedded"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_detector_put_into_the_cache_by_hand_needs_no_network(scripts, cache, monkeypatch):
    monkeypatch.setattr(torchscript, "BASE_URLS", ("http://127.0.0.1:9/metrics/",))
    target = download.cached_path("http://127.0.0.1:9/metrics/vgg16.pt")
    target.write_bytes((scripts / "vgg16.pt").read_bytes())
    check_detector("vgg16")
    assert torchscript.locate("vgg16") == target


def test_known_detectors_come_from_a_mirror_and_others_from_their_url(scripts, site, monkeypatch):
    url, folder = site
    (folder / "vgg16.pt").write_bytes((scripts / "vgg16.pt").read_bytes())
    monkeypatch.setattr(torchscript, "BASE_URLS", (f"{url}/gone/",))
    monkeypatch.setenv("DNNLIB_MIRRORS", url)
    path, digest = torchscript.locate("vgg16"), download.file_digest(scripts / "vgg16.pt")
    assert path == download.cached_path(f"{url}/gone/vgg16.pt") and download.file_digest(path) == digest
    assert get_detector(f"{url}/vgg16.pt", "cpu").digest == digest
    monkeypatch.setenv("DNNLIB_MIRRORS", str(scripts))
    assert torchscript.locate("vgg16") == scripts / "vgg16.pt"


@pytest.mark.parametrize("content", ["half", "page", "weights"])
def test_a_download_that_is_no_torchscript_is_not_kept(scripts, site, content):
    url, folder = site
    whole = (scripts / "pooled.pt").read_bytes()
    if content == "weights":
        torch.save({"weight": torch.zeros(3)}, folder / "net.pt")
    else:
        (folder / "net.pt").write_bytes({"half": whole[: len(whole) // 2], "page": b"<html>please log in</html>"}[content])
    target = download.cached_path(f"{url}/net.pt")
    with pytest.raises(UserError, match=rf"{target} is not a readable TorchScript file but .*it was removed; run again"):
        check_detector(f"{url}/net.pt")
    assert not target.exists()
    (folder / "net.pt").write_bytes(whole)
    check_detector(f"{url}/net.pt")
    assert target.read_bytes() == whole


def test_files_that_are_no_torchscript(tmp_path, scripts):
    whole = (scripts / "pooled.pt").read_bytes()
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    with zipfile.ZipFile(tmp_path / "images.pt", "w") as archive:
        archive.writestr("00000/img00000000.png", b"")
    with zipfile.ZipFile(tmp_path / "hollow.pt", "w") as archive:
        archive.writestr("net/constants.pkl", b"")
    trust_detector(str(tmp_path / "hollow.pt"), remember=False)
    contents = {"half.pt": whole[: len(whole) // 2], "text.pt": b"no script", "empty.pt": b"", "net.pkl": pickle.dumps({"G": 1})}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    reasons = {
        "half.pt": "bytes of something else, or cut off",
        "text.pt": "but 9 bytes of something else",
        "empty.pt": "but 0 bytes of something else",
        "net.pkl": "bytes of something else",
        "weights.pt": "a PyTorch file of weights without their program",
        "images.pt": "an archive of something else",
        "hollow.pt": "is not a readable TorchScript file",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=rf"{name} is not a readable TorchScript file.*delete or replace it") as error:
            get_detector(str(tmp_path / name), "cpu")
        assert reason in str(error.value) and "\n" not in str(error.value)
        assert (tmp_path / name).is_file()


def test_detectors_that_are_none():
    with pytest.raises(UserError, match="detector resnet is neither inception, vgg16 or embedded, nor a file"):
        check_detector("resnet")
    with pytest.raises(UserError, match="no output 'logits'; known are: features, probabilities, lpips"):
        get_detector("embedded", "cpu", "logits")


@pytest.mark.parametrize("module", [NoImages(), NoForward()])
def test_programs_that_take_no_images(tmp_path, module):
    with pytest.raises(UserError, match=r"net\.pt has no forward\(\) that takes images"):
        get_detector(str(save(module, tmp_path / "net.pt")), "cpu")


@pytest.mark.parametrize(
    ("kind", "found"), [(0, r"\[768\]"), (1, r"\[4, 3, 8, 8\]"), (2, r"\[3, 192\]"), (3, r"\[4, 0\]")], ids=["flat", "maps", "fewer", "empty"]
)
def test_a_detector_must_return_one_row_per_image(tmp_path, kind, found):
    detector = get_detector(str(save(Odd(kind), tmp_path / "odd.pt")), "cpu")
    with pytest.raises(UserError, match=f"detector odd returned {found} for 4 images; a matrix of 4 rows is needed"):
        detector(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))


def test_a_detector_must_return_a_tensor(tmp_path):
    detector = get_detector(str(save(Pair(), tmp_path / "pair.pt")), "cpu")
    with pytest.raises(UserError, match="detector pair returned tuple for 4 images"):
        detector(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))


def test_a_detector_that_fails_on_the_images_says_why_in_one_sentence(tmp_path):
    detector = get_detector(str(save(Odd(9), tmp_path / "odd.pt")), "cpu")
    assert detector(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)).shape == (4, 3)
    with pytest.raises(UserError, match=r"detector odd fails on torch\.uint8 images of shape \[4, 3, 4, 4\] \(.*too small.*\)$") as error:
        detector(torch.zeros(4, 3, 4, 4, dtype=torch.uint8))
    assert "\n" not in str(error.value)


def test_running_out_of_memory_is_no_fault_of_the_detector():
    def forward(images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    network = torch.jit.script(Pooled())
    run = torchscript.runner(_Patched(network, forward), "pooled", "features")
    with pytest.raises(torch.OutOfMemoryError):
        run(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


class _Patched:
    """A network with the signature of another."""

    def __init__(self, network, call):
        self.forward, self._call = network.forward, call

    def __call__(self, images, **_):
        return self._call(images)


def test_features_that_are_not_finite_stop_the_pass(tmp_path):
    class Infinite(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.to(torch.float32).flatten(1).log()

    class Zeros:
        bad_images = 0

        def batches(self, spans):
            return iter([torch.zeros(4, 3, 2, 2, dtype=torch.uint8)])

    detector = get_detector(str(save(Infinite(), tmp_path / "log.pt")), "cpu")
    with pytest.raises(UserError, match="detector log returns features with NaN or infinity"):
        features.run_pass(Zeros(), [(detector, [collectors.FeatureConsumer(collectors.Rows(4))])], batch=4, device=torch.device("cpu"))


def test_outputs_are_asked_for_by_argument(scripts):
    images = random_images(5, 3, 8, 8)
    path = str(scripts / "vgg16.pt")
    assert torch.equal(get_detector(path, "cpu")(images), Perceptual()(images, return_features=True))
    assert torch.equal(get_detector(path, "cpu", "lpips")(images), images.flatten(1) / 255)
    assert get_detector(path, "cpu").resize != get_detector(path, "cpu", "lpips").resize == LPIPS_RESIZE
    assert get_detector(path, "cpu").digest == get_detector(path, "cpu", "lpips").digest == download.file_digest(path)


@pytest.mark.parametrize(
    ("file", "need", "sentence"),
    [
        ("pooled.pt", "probabilities", "detector pooled gives no class probabilities, which the inception score needs; use inception or embedded"),
        ("vgg16.pt", "probabilities", "detector vgg16 gives no class probabilities"),
        ("pooled.pt", "lpips", "detector pooled gives no LPIPS features, which path lengths need; use vgg16"),
        ("embedded", "lpips", "detector embedded gives no LPIPS features, which path lengths need; use vgg16"),
        ("inception-2015-12-05.pt", "lpips", "detector inception gives no LPIPS features"),
        ("inception-2015-12-05.pt", "features", "detector inception gives no features; it is not StyleGAN2-ADA's file of that name"),
    ],
)
def test_outputs_that_a_detector_lacks(scripts, tmp_path, file, need, sentence):
    # Under a known name a file whose output is something else must not pass for the known one.
    save(Odd(9), tmp_path / "inception-2015-12-05.pt")
    spec = file if file == "embedded" else str((tmp_path if file.startswith("inception") else scripts) / file)
    with pytest.raises(UserError, match=sentence):
        get_detector(spec, "cpu", need)
    assert need in OUTPUTS


def test_grey_images_reach_the_detector_as_rgb(scripts):
    detector = get_detector(str(scripts / "pooled.pt"), "cpu")
    grey = random_images(5, 1, 8, 8)
    assert torch.equal(detector(grey), detector(grey.repeat(1, 3, 1, 1)))
    assert detector.feature_dim == 12


def test_lpips_features_see_differences_below_a_level(scripts):
    detector = get_detector(str(scripts / "vgg16.pt"), "cpu", "lpips")
    images = random_images(3, 1, 8, 6)
    assert torch.equal(detector(images), detector(images.float())) and detector(images).shape == (3, 3 * 8 * 6)
    assert torch.equal(detector(images), detector(images.double().expand(-1, 3, -1, -1)))
    moved = detector(images.float() + 1e-3) - detector(images)
    assert moved.min() > 0


def test_features_take_uint8_only(scripts):
    with pytest.raises(UserError, match=r"takes uint8 images of shape \[N, C, H, W\], but got torch.float32"):
        get_detector(str(scripts / "vgg16.pt"), "cpu")(torch.zeros(2, 3, 8, 8))
    for wrong in (torch.zeros(2, 3, 8, 8, dtype=torch.int64), torch.zeros(3, 8, 8)):
        with pytest.raises(UserError, match=r"takes uint8 or float images of shape \[N, C, H, W\]"):
            get_detector(str(scripts / "vgg16.pt"), "cpu", "lpips")(wrong)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_become_rgb_by_one_rule(channels):
    images = random_images(4, channels, 5, 7)
    whole, exact = to_rgb_uint8(images), to_rgb_float(images)
    assert whole.shape == exact.shape == (4, 3, 5, 7) and exact.dtype == torch.float32
    assert torch.equal(exact.round().to(torch.uint8), whole)
    assert torch.equal(to_rgb_float(images.to(torch.float64)), exact)
    if channels in (2, 4):
        colour, alpha = images[:, :-1], images[:, -1:]
        opaque, rgb = torch.cat([colour, torch.full_like(alpha, 255)], dim=1), colour.expand(-1, 3, -1, -1)
        assert torch.equal(to_rgb_float(opaque), rgb.float()) and torch.equal(to_rgb_uint8(opaque), rgb)
        clear = torch.cat([colour, torch.zeros_like(alpha)], dim=1)
        assert not to_rgb_float(clear).any() and not to_rgb_uint8(clear).any()
    for convert in (to_rgb_uint8, to_rgb_float):
        with pytest.raises(UserError, match="but got 5 channels"):
            convert(random_images(4, 5, 5, 7))


def test_a_network_is_loaded_once_in_eval_mode_and_asks_for_no_gradients(scripts, monkeypatch):
    path = str(save(Odd(9), scripts / "once.pt"))
    loads = []
    load = torchscript.load
    monkeypatch.setattr(torchscript, "load", lambda *args: loads.append(load(*args)) or loads[-1])
    images = random_images(2, 3, 8, 8)
    first, second = (get_detector(path, "cpu")(images) for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    assert len(loads) == 1 and not loads[0][0].training
