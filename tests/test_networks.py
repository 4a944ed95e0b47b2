"""Networks equal the golden numbers, carry the contract's names and shapes, and hold for every size they claim."""

import json
import pathlib

import numpy as np
import pytest
import torch

from training.networks import Discriminator, Generator, MinibatchStdLayer, modulated_conv2d
from training.networks.mapping import MappingNetwork

DATA = pathlib.Path(__file__).parent / "data"
CONFIGS = ["networks_cifar", "networks_default"]


def golden(name):
    with np.load(DATA / f"{name}.npz") as archive:
        config = json.loads(str(archive["config"]))
        t = {k: torch.from_numpy(archive[k]) for k in archive.files if k != "config"}
    G = Generator(config["z_dim"], config["c_dim"], config["w_dim"], config["img_resolution"], config["img_channels"], **config["G"])
    D = Discriminator(config["c_dim"], config["img_resolution"], config["img_channels"], **config["D"])
    G.load_state_dict({k[2:]: v for k, v in t.items() if k.startswith("G.")})
    D.load_state_dict({k[2:]: v for k, v in t.items() if k.startswith("D.")})
    return config, t, G, D


def near(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * max(expected.abs().max().item(), 1e-8)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_outputs_equal_golden(name):
    _, t, G, D = golden(name)
    G.load_state_dict({k[7:]: v for k, v in t.items() if k.startswith("eval.G.")}, strict=False)
    G.eval(), D.eval()
    z, c = t["z"], t["c2"]
    near(G.mapping(z, c), t["eval.ws"], 1e-4)
    near(G.mapping(z, c, truncation_psi=0.7), t["eval.ws_psi0.7"], 1e-4)
    near(G.mapping(z, c, truncation_psi=0.5, truncation_cutoff=4), t["eval.ws_psi0.5_cutoff4"], 1e-4)
    near(G(z, c, noise_mode="const"), t["eval.img_const"], 1e-4)
    near(G(z, c, noise_mode="none"), t["eval.img_none"], 1e-4)
    near(G(z, c, truncation_psi=0.7, noise_mode="const"), t["eval.img_const_psi0.7"], 1e-4)
    near(D(t["real"], t["c"]), t["eval.logits_real"], 1e-4)
    near(D(t["eval.img_const"], c), t["eval.logits_fake"], 1e-4)


SHAPES = json.loads((DATA / "state_dict_shapes.json").read_text())
FULL_SIZE = {  # c_dim, resolution, channel_base, mapping layers, architecture of D
    "cifar_cond10": (10, 32, 32768, 2, "orig"),
    "paper256": (0, 256, 16384, 8, "resnet"),
    "stylegan2_1024": (0, 1024, 32768, 8, "resnet"),
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_state_dict_names_shapes_and_counts(name):
    c_dim, resolution, channel_base, layers, architecture = FULL_SIZE[name]
    width = {"channel_base": channel_base, "channel_max": 512, "num_fp16_res": 4, "conv_clamp": 256}
    with torch.device("meta"):
        G = Generator(512, c_dim, 512, resolution, 3, mapping_kwargs={"num_layers": layers}, synthesis_kwargs=width)
        D = Discriminator(c_dim, resolution, 3, architecture=architecture, **width)
    for module, which in ((G, "G"), (D, "D")):
        assert {k: list(v.shape) for k, v in module.state_dict().items()} == {k: list(v) for k, v in SHAPES[name][which].items()}
        assert sum(p.numel() for p in module.parameters()) == SHAPES[name][f"{which}_params"]
    assert [child for child, _ in G.named_children()] == ["synthesis", "mapping"]
    assert [child for child, _ in D.named_children()][-1] == "b4"


@pytest.mark.parametrize("resolution,channels,architecture", [(4, 3, "orig"), (8, 1, "skip"), (16, 4, "resnet"), (32, 2, "orig"), (64, 3, "skip")])
def test_every_size_and_architecture(resolution, channels, architecture):
    width = {"channel_base": 256, "channel_max": 8, "architecture": architecture}
    G = Generator(8, 3, 8, resolution, channels, mapping_kwargs={"num_layers": 1}, synthesis_kwargs=width)
    D = Discriminator(3, resolution, channels, **width, mapping_kwargs={"num_layers": 1})
    c = torch.eye(3)[torch.arange(4) % 3]
    img = G(torch.randn(4, 8), c)
    assert img.shape == (4, channels, resolution, resolution) and img.dtype == torch.float32
    logits = D(img, c)
    assert logits.shape == (4, 1)
    logits.sum().backward()
    unused = [k for m in (G, D) for k, p in m.named_parameters() if p.grad is None]
    assert not unused


def test_bfloat16_blocks_stay_near_float32_and_clamp():
    torch.manual_seed(0)
    kwargs = dict(z_dim=16, c_dim=0, w_dim=16, img_resolution=32, img_channels=3, mapping_kwargs={"num_layers": 2})
    width = dict(channel_base=512, channel_max=16, conv_clamp=256)
    full = Generator(**kwargs, synthesis_kwargs=width).eval()
    low = Generator(**kwargs, synthesis_kwargs=dict(width, num_fp16_res=4, low_precision="bfloat16")).eval()
    low.load_state_dict(full.state_dict())
    z = torch.randn(4, 16)
    with torch.no_grad():
        a, b = full(z, None, noise_mode="const"), low(z, None, noise_mode="const")
    assert b.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 0.05 * a.abs().max()


def test_float16_network_computes_in_float32_on_a_cpu():
    torch.manual_seed(0)
    kwargs = dict(z_dim=16, c_dim=0, w_dim=16, img_resolution=16, img_channels=3)
    full = Generator(**kwargs, synthesis_kwargs=dict(channel_base=256, channel_max=16)).eval()
    half = Generator(**kwargs, synthesis_kwargs=dict(channel_base=256, channel_max=16, num_fp16_res=4)).eval()
    half.load_state_dict(full.state_dict())
    z = torch.randn(2, 16)
    assert torch.equal(full(z, None, noise_mode="const"), half(z, None, noise_mode="const"))


def test_modulated_conv_equals_per_sample_weights():
    """Against modulating the weights of each sample and convolving it alone, in float64."""
    g = torch.Generator().manual_seed(0)
    x, w, s = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ([3, 4, 8, 8], [5, 4, 3, 3], [3, 4]))
    y = modulated_conv2d(x, w, s, padding=1)
    for n in range(3):
        wn = w * s[n][None, :, None, None]
        wn = wn * (wn.square().sum(dim=[1, 2, 3], keepdim=True) + 1e-8).rsqrt()
        torch.testing.assert_close(y[n : n + 1], torch.nn.functional.conv2d(x[n : n + 1], wn, padding=1))


def test_modulated_conv_is_invariant_to_the_scale_of_styles():
    x, w, s = torch.randn(2, 4, 8, 8), torch.randn(5, 4, 3, 3), torch.randn(2, 4)
    torch.testing.assert_close(modulated_conv2d(x, w, s, padding=1), modulated_conv2d(x, w, 7 * s, padding=1), rtol=1e-4, atol=1e-4)


def test_minibatch_std_groups():
    """Sample i belongs to group i mod (N / group): shuffling inside a group changes nothing, moving across groups does."""
    x = torch.randn(6, 2, 4, 4)
    layer = MinibatchStdLayer(group_size=3)
    y = layer(x)[:, -1, 0, 0]
    assert torch.allclose(y[[0, 1]], y[[2, 3]]) and torch.allclose(y[[0, 1]], y[[4, 5]]) and not torch.allclose(y[0], y[1])
    expected = x[0::2].std(dim=0, unbiased=False).square().add(1e-8).sqrt().mean()
    assert torch.allclose(y[0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="groups of 3"):
        layer(torch.randn(4, 2, 4, 4))


@pytest.mark.parametrize("architecture", ["resnet", "skip", "orig"])
def test_features_of_an_image_depend_on_no_other_and_logits_do(architecture):
    torch.manual_seed(0)
    D = Discriminator(0, 16, 3, architecture=architecture, channel_base=256, channel_max=8).eval()
    img = torch.randn(4, 3, 16, 16)
    other = torch.cat([img[:1], 9 * torch.randn(3, 3, 16, 16)])
    features = D.features(img)
    assert features.shape == (4, D.feature_channels, 4, 4)
    torch.testing.assert_close(D.features(other)[0], features[0])
    assert (D(other, None)[0] - D(img, None)[0]).abs() > 1e-4  # by way of the minibatch-std layer


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_freeze_d_makes_buffers_from_the_image_side(count):
    D = Discriminator(0, 16, 3, channel_base=256, channel_max=8, block_kwargs={"freeze_layers": count})
    order = [f"b{res}.{layer}" for res in (16, 8) for layer in (["fromrgb"] if res == 16 else []) + ["conv0", "conv1", "skip"]]
    frozen = {name.rsplit(".", 1)[0] for name, _ in D.named_buffers() if name.endswith("weight")}
    assert frozen == set(order[:count])
    assert set(D.state_dict()) == set(Discriminator(0, 16, 3, channel_base=256, channel_max=8).state_dict())


def test_a_mapping_of_labels_alone_keeps_no_mean():
    """As a discriminator has it: w comes out once, in training, too, and there is nothing to truncate towards."""
    mapping = MappingNetwork(0, 10, 32, num_ws=None).train()
    assert mapping(None, torch.eye(10)).shape == (10, 32) and "w_avg" not in mapping.state_dict()
    with pytest.raises(ValueError, match="needs the running mean of w"):
        mapping(None, torch.eye(10), truncation_psi=0.5)


def test_truncation_and_noise_laws():
    torch.manual_seed(0)
    G = Generator(8, 0, 8, 16, 3, synthesis_kwargs=dict(channel_base=128, channel_max=8)).eval()
    z = torch.randn(2, 8)
    assert torch.equal(G.mapping(z, None, truncation_psi=0)[0], G.mapping.w_avg.expand(G.num_ws, -1))
    assert torch.equal(G.mapping(z, None, truncation_psi=0.5, truncation_cutoff=2)[:, 2:], G.mapping(z, None)[:, 2:])
    for name, p in G.named_parameters():
        if name.endswith("noise_strength"):
            p.data.fill_(0.5)
    a, b = G(z, None, noise_mode="random"), G(z, None, noise_mode="random")
    assert not torch.equal(a, b) and torch.equal(G(z, None, noise_mode="const"), G(z, None, noise_mode="const"))
    w_avg = G.mapping.w_avg.clone()
    G.train()
    G.mapping(z, None, skip_w_avg_update=True)
    assert torch.equal(w_avg, G.mapping.w_avg)
    G.mapping(z, None)
    assert not torch.equal(w_avg, G.mapping.w_avg)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="power of two"):
        Generator(8, 0, 8, 24, 3)
    with pytest.raises(ValueError, match="architecture"):
        Discriminator(0, 16, 3, architecture="unet")
    G = Generator(8, 2, 8, 8, 3, synthesis_kwargs=dict(channel_base=64))
    with pytest.raises(ValueError, match=r"c is \[N, 2\]"):
        G(torch.randn(2, 8), None)
    with pytest.raises(ValueError, match="noise_mode"):
        G.synthesis(torch.zeros(1, G.num_ws, 8), noise_mode="loud")
