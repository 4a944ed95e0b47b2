"""Files of StyleGAN2 for TensorFlow: converted networks compute what the file's variables do by that program's layouts; others are refused."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import legacy as legacy_command
from bench.tensorflow_files import LATENT, Network, discriminator, file_of, generator, written
from dnnlib import UserError
from tests.tensorflow_parts import images_of, scores_of
from torch_utils.legacy import read_pickle
from training.networks import build_network, load_network


def networks(data):
    records, meta = read_pickle(data)
    assert list(records) == ["G", "D", "G_ema"] and meta == {"training_set_kwargs": None, "augment_pipe": None}
    json.dumps([record.kwargs for record in records.values()])
    return {name: build_network(record).eval() for name, record in records.items()}


def labels_of(count, samples=4):
    return torch.eye(count)[torch.arange(samples) % count] if count else None


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize("labels", [0, 3])
def test_images_are_those_of_the_variables(labels, architecture):
    theirs = generator(labels, architecture)
    ours = networks(written((theirs, discriminator(), generator(seed=2))))["G"]
    z, c = torch.randn(4, LATENT, generator=torch.Generator().manual_seed(0)), labels_of(labels)
    images = ours(z, c, noise_mode="const")
    torch.testing.assert_close(images, images_of(theirs, z, c, architecture), atol=2e-4, rtol=2e-4)  # of values up to some 10
    assert torch.equal(ours.mapping.w_avg, torch.as_tensor(theirs.variables["dlatent_avg"]))


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize("labels", [0, 3])
def test_scores_are_those_of_the_variables(labels, architecture):
    theirs = discriminator(labels, architecture, mbstd_group_size=2)
    ours = networks(written((generator(), theirs, generator())))["D"]
    images, c = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), labels_of(labels)
    torch.testing.assert_close(ours(images, c), scores_of(theirs, images, c, architecture, group=2), atol=2e-4, rtol=2e-4)


def test_a_wrong_layout_would_be_noticed():
    """Flipped kernels or styles without their one give other images than the reference in this file."""
    theirs = generator()
    z = torch.randn(2, LATENT)
    images = images_of(theirs, z, None, "skip")
    for name, change in (("8x8/Conv0_up/weight", lambda value: value[::-1, ::-1]), ("4x4/Conv/mod_bias", lambda value: value - 1)):
        changed = generator()
        changed.parts["synthesis"].variables[name] = change(changed.parts["synthesis"].variables[name]).copy()
        assert (images_of(changed, z, None, "skip") - images).abs().max() > 0.1


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_protocols(protocol):
    """3 and 4 hold arrays behind their type, 5 in one call."""
    records = read_pickle(file_of(protocol=protocol))[0]
    for name, record in read_pickle(file_of())[0].items():
        assert all(torch.equal(tensor, records[name].tensors[key]) for key, tensor in record.tensors.items())


def test_the_average_is_the_third_network():
    found = networks(written((generator(seed=3), discriminator(), generator(seed=4))))
    third = torch.as_tensor(generator(seed=4).parts["mapping"].variables["Dense0/bias"])
    assert torch.equal(found["G_ema"].mapping.fc0.bias, third) and not torch.equal(found["G"].mapping.fc0.bias, third)


def test_noise_that_is_not_used():
    G = generator(use_noise=False)
    found = networks(written((G, discriminator(), generator())))["G"]
    assert not found.synthesis.b4.conv1.use_noise and not [name for name in found.state_dict() if "noise" in name]


def test_a_mean_that_stays():
    assert networks(written((generator(w_avg_beta=None), discriminator(), generator())))["G"].mapping.w_avg_beta == 1


def nested(depth):
    """A list that grows twofold in text with every level, and not in the file."""
    value = ["x"]
    for _ in range(depth):
        value = [value, value]
    return value


def test_the_name_of_the_function_is_text_or_nothing():
    D = discriminator()
    D.function = nested(60)
    assert read_pickle(written((generator(), D, generator())))[0]["D"].kwargs["epilogue_kwargs"]["mbstd_group_size"] is None


@pytest.mark.parametrize("name", ["4x4/Dense0/weight", "16x16/FromRGB/bias", "Output/bias"])
def test_a_discriminator_without_a_variable_or_with_another(name):
    D = discriminator()
    value = D.variables.pop(name)
    with pytest.raises(UserError, match=f"lacks the TensorFlow variable {name}"):
        read_pickle(written((generator(), D, generator())))
    D.variables |= {name: value, "Surplus/bias": value + 1}
    with pytest.raises(UserError, match="Surplus/bias, which this architecture does not have"):
        read_pickle(written((generator(), D, generator())))


def test_one_network_in_two_places():
    G = generator()
    found = networks(written((G, discriminator(), G)))
    assert all(torch.equal(tensor, found["G_ema"].state_dict()[name]) for name, tensor in found["G"].state_dict().items())
    assert found["G"].mapping.fc0.bias is not found["G_ema"].mapping.fc0.bias


def test_arguments_that_no_variable_shows():
    given = {"num_fp16_res": 2, "conv_clamp": 256, "resample_kernel": [1, 2, 1], "nonlinearity": "relu"}
    average = generator(mapping_nonlinearity="relu", mapping_lrmul=0.1, w_avg_beta=0.99, truncation_psi=0.5, normalize_latents=True, **given)
    records, _ = read_pickle(written((generator(dlatent_avg_beta=0.9), discriminator(mapping_lrmul=0.2, **given), average)))
    kwargs = records["G_ema"].kwargs
    assert kwargs["mapping_kwargs"]["lr_multiplier"] == 0.1 and kwargs["mapping_kwargs"]["activation"] == "relu"
    assert kwargs["mapping_kwargs"]["w_avg_beta"] == 0.99 and records["G"].kwargs["mapping_kwargs"]["w_avg_beta"] == 0.9
    for found in (kwargs["synthesis_kwargs"], records["D"].kwargs):
        assert (found["num_fp16_res"], found["conv_clamp"]) == (2, 256)
    assert kwargs["synthesis_kwargs"]["resample_filter"] == [1, 2, 1] == records["D"].kwargs["block_kwargs"]["resample_filter"]
    assert records["D"].kwargs["epilogue_kwargs"]["activation"] == "relu" and records["D"].kwargs["mapping_kwargs"]["lr_multiplier"] == 0.2
    assert records["G_ema"].tensors["synthesis.b8.conv0.resample_filter"].shape == (3, 3)


@pytest.mark.parametrize(("function", "size"), [("D_stylegan2", 4), ("D_main", None)])
def test_group_of_the_minibatch_deviation_where_the_file_leaves_it_open(function, size):
    D = discriminator()
    D.function = function
    assert read_pickle(written((generator(), D, generator())))[0]["D"].kwargs["epilogue_kwargs"]["mbstd_group_size"] == size


def test_without_noise_and_with_one_colour():
    G = generator(colours=1)
    synthesis = G.parts["synthesis"]
    synthesis.variables = {name: value for name, value in synthesis.variables.items() if "noise" not in name}
    found = networks(written((G, discriminator(colours=1), G)))
    assert found["G_ema"](torch.zeros(1, LATENT), None).shape == (1, 1, 16, 16) == found["G_ema"](torch.ones(1, LATENT), None).shape
    assert not found["G_ema"].synthesis.b4.conv1.use_noise


def test_command_and_function(tmp_path):
    source, target = tmp_path / "tf.pkl", tmp_path / "tf.safetensors"
    source.write_bytes(file_of(labels=3))
    result = CliRunner().invoke(legacy_command.main, [f"--source={source}", f"--dest={target}"])
    assert result.exit_code == 0, result.output
    z, c = torch.randn(2, LATENT), labels_of(3, 2)
    images = [network["G_ema"](z, c, noise_mode="const") for network in (load_network(source), load_network(target))]
    with open(source, "rb") as file:
        images.append(legacy_command.load_network_pkl(file)["G_ema"](z, c, noise_mode="const"))
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


# ---------------------------------------------------------------- refused


def broken(change):
    """A file whose generator was changed."""
    G = generator()
    change(G)
    return written((G, discriminator(), generator()))


def variables(G, part="synthesis"):
    return G.parts[part].variables


REFUSED = {
    "version 3": (lambda G: setattr(G, "version", 3), "version 3 .* before StyleGAN2"),
    "no version": (lambda G: setattr(G, "version", None), "version 0"),
    "missing": (lambda G: variables(G).pop("8x8/Conv1/bias"), "lacks the TensorFlow variable synthesis/8x8/Conv1/bias"),
    "no constant": (lambda G: variables(G).pop("4x4/Const/const"), "lacks .*Const"),
    "no layers": (lambda G: variables(G, "mapping").clear(), "lacks .*mapping/Dense0"),
    "no average": (lambda G: G.variables.clear(), "lacks .*dlatent_avg"),
    "surplus": (lambda G: variables(G).update({"8x8/Conv2/weight": np.zeros([1], np.float32)}), "8x8/Conv2/weight, which"),
    "progressive": (lambda G: variables(G).update({"ToRGB_lod0/weight": np.zeros([1], np.float32)}), "progressive growing"),
    "labels of before": (lambda G: variables(G, "mapping").update({"LabelConcat/weight": np.zeros([1], np.float32)}), "in another way"),
    "gap": (lambda G: variables(G).update({"64x64/Conv1/weight": np.zeros([1], np.float32)}), "do not double"),
    "axes": (lambda G: variables(G).update({"8x8/Conv1/weight": np.zeros([3, 3, 6], np.float32)}), "4 axes are expected"),
    "shape": (lambda G: variables(G).update({"8x8/Conv1/weight": np.zeros([3, 3, 5, 6], np.float32)}), "size mismatch for synthesis.b8.conv1.weight"),
    "numbers": (lambda G: variables(G).update({"8x8/Conv1/bias": np.zeros([6], np.int32)}), "int32 where float32"),
    "halves": (lambda G: variables(G).update({"8x8/Conv1/bias": np.zeros([6], np.float16)}), "float16 where float32"),
    "twice": (lambda G: variables(G).update({"8x8/Conv1/bias": variables(G)["8x8/Conv0_up/bias"]}), "array of another variable"),
    "text": (lambda G: variables(G).update({"8x8/Conv1/bias": np.array("x" * 6)}), "unknown type"),
    "objects": (lambda G: variables(G).update({"8x8/Conv1/bias": np.array([{}])}), "unknown type"),
    "argument": (lambda G: G.arguments.update(truncation_fn="f"), "argument truncation_fn, which"),
    "latents": (lambda G: G.arguments.update(normalize_latents=True, fmap_decay=1.0, spectral_norm=True), "argument spectral_norm"),
    "taps": (lambda G: G.arguments.update(resample_kernel=[]), "no row of numbers"),
    "table": (lambda G: G.arguments.update(conv_clamp={}), "dict as the argument conv_clamp"),
    "sum of taps": (lambda G: G.arguments.update(resample_kernel=[1, -1]), "with a sum"),
    "huge taps": (lambda G: G.arguments.update(resample_kernel=[10**400]), "list as the argument resample_kernel"),
    "huge version": (lambda G: setattr(G, "version", -(10**5000)), "version 0"),
    "huge name": (lambda G: G.arguments.update({"x" * 10_000: True}), "table of arguments"),
    "name of a part": (lambda G: G.parts.update(more=Network("f", {})), "whose parts are mapping and synthesis"),
    "part": (lambda G: G.parts.update(mapping=5), "int as a part"),
    "nested": (lambda G: G.parts["mapping"].parts.update(mapping=Network("f", {})), "table of variables"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    change, message = REFUSED[name]
    path = tmp_path / "tf.pkl"
    path.write_bytes(broken(change))
    with pytest.raises(UserError, match=message) as caught:
        load_network(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


class SharedBytes:
    """An array whose bytes another one has, too."""

    data = bytes(24_000)

    def __reduce__(self):
        return np.zeros([0]).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (6_000,), np.dtype("f4"), False, self.data)


def test_a_file_makes_no_more_arrays_than_it_has_bytes():
    data = written([SharedBytes() for _ in range(10)])
    assert len(data) < 48_000
    with pytest.raises(UserError, match="unfolds the same bytes"):
        read_pickle(data)


def test_latents_that_are_not_normalised_are_refused():
    with pytest.raises(UserError, match="normalize_latents"):
        read_pickle(broken(lambda G: G.arguments.update(normalize_latents=False)))


@pytest.mark.parametrize(("content", "message"), [((), "tuple"), ((1, 2, 3), "tuple"), ((generator(),), "holds 1 TensorFlow networks")])
def test_other_contents(content, message):
    with pytest.raises(UserError, match=message):
        read_pickle(written(content))


def test_discriminator_with_labels_of_before():
    D = discriminator()
    D.variables |= {"Output/weight": np.zeros([6, 3], np.float32), "Output/bias": np.zeros([3], np.float32)}
    with pytest.raises(UserError, match=r"discriminator of 3 outputs .* in another way"):
        read_pickle(written((generator(), D, generator())))
