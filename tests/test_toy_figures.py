"""Figures of the toy experiments: colours tell latents apart, panels share a scale, what is written in them is right, and files are whole."""

import base64
import colorsys
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from dnnlib import UserError
from experiments.paper.pictures import DRAWN_BY
from experiments.toy.distributions import GRID, RING, VERTICAL, GaussianMixture
from experiments.toy.figures import Extent, Panel, film_strip, latent_colours, save_figure, scatter_panels, smaller_png, target_extent
from experiments.toy.figures_charts import RING_ANGLES, RING_LAYERS, HeatMap, cell_density, expansion_panels, heat_maps, latent_grid, ring_density
from experiments.toy.figures_transport import transport_panels
from experiments.toy.parts import Part
from experiments.toy.studies import STUDIES

N = 400


def normal(n=N, seed=0):
    return torch.randn([n, 2], generator=torch.Generator().manual_seed(seed))


def panel(distribution, title="GAN", numbers=None):
    return Panel(title, distribution.sample(N, torch.Generator().manual_seed(1)), normal(), numbers or {})


def polar(angles, radius):
    return radius * torch.stack([angles.cos(), angles.sin()], dim=1)


def texts(axis):
    return [text.get_text() for text in axis.texts]


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    assert plt.get_fignums() == []


def test_colours_are_hue_by_direction_and_brightness_by_radius():
    angles = torch.arange(24) * (2 * math.pi / 24)
    rings = [latent_colours(polar(angles, radius)) for radius in (1.0, 2.0, 3.0)]
    assert all(((ring >= 0) & (ring <= 1)).all() for ring in rings)
    assert all((inner.mean(axis=1) < outer.mean(axis=1)).all() for inner, outer in zip(rings, rings[1:]))
    hues = np.array([[colorsys.rgb_to_hsv(*colour)[0] for colour in ring] for ring in rings])
    turns = np.abs(np.exp(2j * np.pi * hues[:1]) - np.exp(2j * np.pi * hues[1:]))
    assert turns.max() < 2 * np.sin(np.pi * 0.06)  # the same direction: within 0.06 of a turn, less than two of the 24 directions
    order = np.unwrap(hues[1], period=1)
    assert (np.diff(order) > 0).all() or (np.diff(order) < 0).all()


def test_far_latents_differ_in_colour_and_near_ones_do_not():
    z = normal(300)
    colours = latent_colours(z)
    # What the colours stand for: the share of the prior nearer to the middle, and the direction.
    inner = 1 - (-z.square().sum(dim=1, keepdim=True) / 2).exp()
    place = inner * z / z.norm(dim=1, keepdim=True)
    apart, contrast = torch.cdist(place, place), torch.cdist(torch.tensor(colours), torch.tensor(colours))
    assert contrast[apart > 0.8].min() > 0.2
    assert contrast[apart < 0.02].max() < 0.12
    np.testing.assert_array_equal(latent_colours(z[:7]), colours[:7])


def test_latents_outside_the_plane_are_refused():
    with pytest.raises(UserError, match=r"\[5, 3\].*z_dim 2"):
        latent_colours(torch.zeros([5, 3]))


def test_all_panels_share_the_targets_extent_and_say_what_lies_outside():
    extent = target_extent(VERTICAL)
    good = panel(VERTICAL, numbers={"P": 0.97, "C": 1.0})
    samples = good.samples.clone()
    samples[:100] = torch.tensor([0.0, 1e3])
    figure = scatter_panels([good, Panel("broken", samples, good.latents)], VERTICAL, "title", "caption")
    key, target, first, second = figure.axes
    assert {(*axis.get_xlim(), *axis.get_ylim()) for axis in (target, first, second)} == {(*extent.x, *extent.y)}
    assert key.get_xlim() != target.get_xlim()
    assert first.get_title() == "GAN\nP .97  C 1.00" and texts(first) == []
    assert texts(second) == ["25.0% outside"]
    assert extent.share_outside(VERTICAL.sample(10_000, torch.Generator().manual_seed(5))) == 0
    assert Extent((0, 1), (0, 1)).share_outside(torch.tensor([[0.5, 0.5], [0.5, 1.5], [-1, 0.5], [1.0, 0.0]])) == 0.5


def test_points_carry_their_own_latents_colour():
    shown = panel(RING)
    axis = scatter_panels([shown], RING, "").axes[2]
    cloud = axis.collections[0]
    np.testing.assert_allclose(np.asarray(cloud.get_offsets()), shown.samples.numpy())
    np.testing.assert_allclose(cloud.get_facecolors()[:, :3], latent_colours(shown.latents))


def test_transport_gives_each_mode_its_share_and_its_close_up():
    samples = torch.tensor(VERTICAL.centres)[torch.tensor([0, 0, 1, 4])]
    latents = normal(4)
    (axis,) = transport_panels([Panel("GAN", samples, latents)], VERTICAL, "").axes
    assert [text for text in texts(axis) if "%" in text] == ["50%", "25%", "0%", "0%", "25%"]
    lines = axis.collections[1].get_segments()
    np.testing.assert_allclose([line[1] for line in lines], samples.numpy())
    assert max(line[0][0] for line in lines) < target_extent(VERTICAL).x[0]  # all latents lie to the left of the target
    assert len(axis.patches) == len(VERTICAL.centres)


def test_modes_side_by_side_get_no_close_up():
    for distribution in (RING, GRID, GaussianMixture("side by side", ((-1.0, 0.0), (1.0, 0.0)), 0.1)):
        (axis,) = transport_panels([panel(distribution)], distribution, "").axes
        assert len(axis.patches) == 0 and not any("%" in text for text in texts(axis))


def test_a_film_has_a_row_per_method_and_a_column_per_step():
    films = {0: panel(RING), 1000: panel(RING)}
    figure = film_strip({"GAN": films, "GAN+R1": films}, RING, "")
    assert [axis.get_title() for axis in figure.axes] == ["step 0", "step 1,000", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["GAN", "", "GAN+R1", ""]
    assert len({(*axis.get_xlim(), *axis.get_ylim()) for axis in figure.axes}) == 1
    with pytest.raises(UserError, match=r"\[0, 1000\], \[0\]"):
        film_strip({"GAN": films, "GAN+R1": {0: films[0]}}, RING, "")


def test_density_on_the_ring_is_one_for_the_target_and_finds_a_line_and_an_arc():
    real = RING.sample(200_000, torch.Generator().manual_seed(2))
    density = cell_density(real, RING)
    assert density.shape == (RING_LAYERS, RING_ANGLES) and density.mean() == pytest.approx(1)
    assert np.abs(density - 1).max() < 0.25  # cells hold 694 +- 26 of 200,000
    line = cell_density(real / real.norm(dim=1, keepdim=True) * (RING.radius + 0.1 * RING.std), RING)
    assert np.flatnonzero(line.sum(axis=1)).tolist() == [RING_LAYERS // 2]
    arc = cell_density(real[(real[:, 1] > 0) & (real[:, 0] > 0)], RING)
    assert (arc[:, RING_ANGLES // 4 :] == 0).all() and arc[:, : RING_ANGLES // 4].mean() == pytest.approx(4)


def test_the_ring_figure_counts_nearly_empty_cells():
    collapsed = torch.tensor([[1.0, 0.0]]).expand(2, N, 2)
    exact = torch.stack([RING.sample(10_000, torch.Generator().manual_seed(seed)) for seed in (3, 4)])
    figure = ring_density({"collapsed": collapsed, "exact": exact}, RING, "")
    assert [axis.get_title() for axis in figure.axes[:2]] == ["collapsed\n100% of the ring nearly empty", "exact\n0% of the ring nearly empty"]


def test_heat_maps_write_every_number_and_frame_the_papers_setting():
    values = np.array([[0.5, 1.0, np.nan], [0.0, 0.25, 0.75]])
    heat = HeatMap("coverage", values, ["0", "0.05"], ["0.1", "0.5", "1"], "lambda", "tau", marked=(1, 0))
    plain = HeatMap("precision", values, ["0", "0.05"], ["0.1", "0.5", "1"])
    figure = heat_maps([[heat, plain]], "title")
    assert texts(figure.axes[0]) == [".50", "1.00", "–", ".00", ".25", ".75"]
    (frame,) = figure.axes[0].patches
    assert frame.get_xy() == (-0.5, 0.5) and len(figure.axes[1].patches) == 0
    assert {axis.images[0].get_clim() for axis in figure.axes[:2]} == {(0, 1)}


def test_expansion_shows_the_plane_right_way_up_with_its_folds():
    z = latent_grid(20)
    assert z[0].tolist() == z.min(dim=0).values.tolist() and z[1, 0] > z[0, 0] and z[1, 1] == z[0, 1]
    figure = expansion_panels({"folded": z[:, 1], "squeezed": 10.0 ** z[:, 1]}, "")
    folded, squeezed, _ = figure.axes
    assert len(folded.collections) == 1 and len(squeezed.collections) == 0  # one set of contours
    image = squeezed.images[0]
    assert image.origin == "lower" and (np.diff(np.asarray(image.get_array()), axis=0) > 0).all()
    assert folded.images[0].get_clim() == image.get_clim()


def test_accuracies_of_different_tasks_have_axes_of_their_own_and_methods_keep_their_colour():
    history = {name: torch.ones(3) for name in ("pairing weight", "accuracy", "pairing")} | {"step": torch.arange(3)}
    names = ("GAN+Pairing+R1", "GAN+Pairing(binary)+R1", "GAN+Pairing(adaptive)+R1")
    parts = {name: [Part("ring", name, seed, {}, [], {}, history) for seed in (0, 1)] for name in names}
    axes = DRAWN_BY["weights"](STUDIES["ring"], parts).axes
    shown = [{line.get_label(): line.get_color() for line in axis.lines if line.get_linewidth() > 1} for axis in axes]
    assert [set(curves) for curves in shown] == [set(names), {names[0], names[2]}, {names[1]}, set(names)]
    assert all(curves[name] == shown[0][name] for curves in shown for name in curves) and len(set(shown[0].values())) == 3
    assert "chance 0.008" in axes[1].get_title() and "chance 0.5" in axes[2].get_title()
    assert len(DRAWN_BY["weights"](STUDIES["ring"], {names[0]: parts[names[0]]}).axes) == 3


def test_saved_twice_the_files_are_the_same_and_nothing_else_is_left(tmp_path):
    shown = [panel(VERTICAL), panel(VERTICAL, "GAN+R1")]
    (tmp_path / "again").mkdir()
    first = save_figure(transport_panels(shown, VERTICAL, "title"), tmp_path / "table1.transport")
    second = save_figure(transport_panels(shown, VERTICAL, "title"), tmp_path / "again" / "table1.transport")
    assert [path.name for path in first] == ["table1.transport.png", "table1.transport.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", *(path.name for path in first)]
    text = first[1].read_text(encoding="utf-8")
    images = re.findall(r'data:image/png;base64,([^"]+)"', text)
    assert images and all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    assert "<dc:date>" not in text


def test_a_missing_folder_is_named_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "none" / "figure.png"))):
        save_figure(Figure(), tmp_path / "none" / "figure")
    assert list(tmp_path.iterdir()) == []


def test_smaller_pictures_look_the_same(tmp_path):
    save_figure(scatter_panels([panel(RING)], RING, ""), tmp_path / "figure")
    figure = scatter_panels([panel(RING)], RING, "")
    figure.savefig(tmp_path / "full.png", dpi=130)
    full, packed = (plt.imread(tmp_path / name) for name in ("full.png", "figure.png"))
    assert full.shape[:2] == packed.shape[:2]
    assert np.abs(full[..., :3] - packed[..., :3]).mean() < 0.01
    data = (tmp_path / "full.png").read_bytes()
    assert len(smaller_png(data)) < 0.6 * len(data)
