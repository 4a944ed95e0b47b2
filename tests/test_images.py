"""Pictures: bytes round to the nearest, sheets put every image where it belongs, files are whole and open again."""

import os
import sys

import numpy as np
import PIL.Image
import pytest
import torch

from dnnlib import EasyDict, UserError
from training import images


def random_images(count=6, channels=3, height=4, width=5, seed=0):
    return torch.randint(0, 256, (count, channels, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class Labelled:
    """A data set whose image i has label labels[i]."""

    def __init__(self, labels):
        self.labels, self.has_labels = labels, labels[0] is not None

    def __len__(self):
        return len(self.labels)

    def get_details(self, idx):
        return EasyDict(raw_idx=idx, xflip=False, raw_label=np.asarray(self.labels[idx]))


def test_bytes_are_the_nearest_and_come_back():
    values = torch.linspace(-1, 1, 10_001, dtype=torch.float64)
    exact = (values + 1) * 127.5
    assert (images.to_uint8(values.float()).double() - exact).abs().max() <= 0.5 + 1e-4
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(images.to_uint8(every.float() / 127.5 - 1), every)
    assert images.to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
    assert images.to_uint8(every) is every


@pytest.mark.parametrize(
    ("size", "grid"),
    [((32, 32), (32, 32)), ((256, 256), (30, 16)), ((1024, 1024), (7, 4)), ((512, 256), (15, 16)), ((4, 4), (32, 32)), ((8192, 8192), (7, 4))],
)
def test_grid_rule(size, grid):
    assert images.default_grid(*size) == grid


def test_sheet_puts_every_image_in_its_cell():
    batch = random_images()
    sheet = images.make_sheet(batch, (3, 2))
    assert sheet.shape == (3, 8, 15) and sheet.dtype == torch.uint8
    for cell in range(6):
        row, column = divmod(cell, 3)
        assert torch.equal(sheet[:, row * 4 : row * 4 + 4, column * 5 : column * 5 + 5], batch[cell])
    assert torch.equal(images.make_sheet(batch.numpy(), (3, 2)), sheet)
    assert torch.equal(images.make_sheet(batch.float() / 127.5 - 1, (3, 2)), sheet)


def test_unfilled_cells_are_black_and_too_many_images_an_error():
    sheet = images.make_sheet(random_images(5), (3, 2))
    assert sheet[:, 4:, 10:].sum() == 0 and sheet[:, 4:, :10].sum() > 0
    with pytest.raises(ValueError, match="do not fit"):
        images.make_sheet(random_images(7), (3, 2))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_png_round_trip(tmp_path, channels, mode):
    batch = random_images(4, channels)
    images.save_image_grid(batch, tmp_path / "x.png", (2, 2))
    with PIL.Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == mode and picture.size == (10, 8)
        pixels = np.asarray(picture).reshape(8, 10, channels).transpose(2, 0, 1)
    assert np.array_equal(pixels, images.make_sheet(batch, (2, 2)).numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_impossible_files_and_channels(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        images.save_png(random_images()[0], tmp_path / "none" / "x.png")
    with pytest.raises(ValueError, match="channels"):
        images.save_png(random_images(1, 5)[0], tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_grid_indices_without_labels():
    dataset = Labelled([None] * 100)
    chosen = images.grid_indices(dataset, (8, 8))
    assert len(chosen) == len(set(chosen)) == 64 and chosen == images.grid_indices(dataset, (8, 8))
    assert chosen != sorted(chosen) and chosen != images.grid_indices(dataset, (8, 8), seed=1)
    few = images.grid_indices(Labelled([None] * 5), (4, 4))
    assert len(few) == 16 and set(few) == set(range(5))


@pytest.mark.parametrize("kind", [int, lambda label: [label / 2, -label]])
def test_grid_indices_show_one_label_per_row(kind):
    names = [index % 3 for index in range(60)]
    chosen = images.grid_indices(Labelled([kind(name) for name in names]), (4, 5))
    rows = [[names[index] for index in chosen[row * 4 : row * 4 + 4]] for row in range(5)]
    assert rows == [[0] * 4, [1] * 4, [2] * 4, [0] * 4, [1] * 4]
    assert len(set(chosen)) == 20
    assert all(isinstance(index, int) for index in chosen)


def test_enlarge_repeats_pixels():
    image = random_images()[0]
    big = images.enlarge(image, 10)
    assert big.shape == (3, 12, 15) and torch.equal(big[:, ::3, ::3], image) and torch.equal(big[:, 2::3, 1::3], image)
    assert torch.equal(images.enlarge(image, 4), image)


def moving_frames(channels, count=5, size=16):
    """A white area that grows; opaque where there is alpha."""
    for index in range(count):
        frame = torch.zeros(channels, size, size, dtype=torch.uint8)
        frame[:, :, : 2 + 3 * index] = 255
        if channels in (2, 4):
            frame[-1] = 255
        yield frame


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_gif_has_every_frame(tmp_path, channels):
    images.write_gif(moving_frames(channels), tmp_path / "x.gif", fps=10)
    with PIL.Image.open(tmp_path / "x.gif") as picture:
        assert picture.n_frames == 5 and picture.info["duration"] == 100 and picture.info["loop"] == 0
        for index in range(5):
            picture.seek(index)
            assert (np.asarray(picture.convert("L"))[8] > 127).sum() == 2 + 3 * index


@pytest.mark.parametrize("fps", [7, 30, 40, 50])
def test_a_gif_is_as_long_as_its_frames_at_that_rate(tmp_path, fps):
    images.write_gif(moving_frames(3, count=12, size=64), tmp_path / "x.gif", fps=fps)
    with PIL.Image.open(tmp_path / "x.gif") as picture:
        lengths = [picture.seek(index) or picture.info["duration"] for index in range(12)]
    assert sum(lengths) == 10 * round(1200 / fps) and max(lengths) - min(lengths) <= 10


def test_more_frames_a_second_than_a_gif_can_show_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot show 60 frames per second; a GIF shows 50 at most"):
        images.write_animation(moving_frames(3), tmp_path / "x.gif", fps=60)


def test_a_video_that_the_encoder_did_not_finish_is_no_video(tmp_path, monkeypatch):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")

    def cut_off(path, size, **options):
        writer = write_frames(path, size, **options)
        writer.send(None)
        try:
            while True:
                writer.send((yield))
        except GeneratorExit:
            writer.close()
            with open(path, "r+b") as file:
                file.truncate(os.path.getsize(path) // 2)

    write_frames = ffmpeg.write_frames
    monkeypatch.setattr(ffmpeg, "write_frames", cut_off)
    with pytest.raises(UserError, match="the video encoder failed, or the disk is full"):
        images.write_mp4(moving_frames(3, size=32), tmp_path / "x.mp4", fps=10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_composed_over_white(tmp_path, channels):
    frame = torch.zeros(channels, 8, 8, dtype=torch.uint8)
    frame[-1, :, :4] = 255
    images.write_animation([frame], tmp_path / "x.gif", fps=10)
    with PIL.Image.open(tmp_path / "x.gif") as picture:
        assert np.asarray(picture.convert("L"))[3].tolist() == [0] * 4 + [255] * 4


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_mp4_plays_back(tmp_path, channels):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    images.write_animation(moving_frames(channels, size=32), tmp_path / "x.mp4", fps=10)
    reader = ffmpeg.read_frames(str(tmp_path / "x.mp4"))
    info = next(reader)
    decoded = [np.frombuffer(frame, np.uint8).reshape(32, 32, 3) for frame in reader]
    assert info["size"] == (32, 32) and info["fps"] == 10 and len(decoded) == 5
    assert [int((frame[16, :, 1] > 127).sum()) for frame in decoded] == pytest.approx([2, 5, 8, 11, 14], abs=1)


def test_mp4_with_odd_sides_and_failures(tmp_path, monkeypatch):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    images.write_mp4(iter(random_images(3, 3, 17, 33)), tmp_path / "odd.mp4", fps=5)
    assert next(ffmpeg.read_frames(str(tmp_path / "odd.mp4")))["size"] == (34, 18)
    for write in (images.write_mp4, images.write_gif):
        with pytest.raises(ValueError, match="frame"):
            write([], tmp_path / "empty.mp4", fps=5)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=r"pip install imageio-ffmpeg"):
        images.check_animation_path("x.mp4")
    with pytest.raises(UserError, match="ends in"):
        images.check_animation_path("x.avi")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.mp4"]


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_a_failing_frame_leaves_nothing_behind(tmp_path, suffix):
    if suffix == "mp4":
        pytest.importorskip("imageio_ffmpeg")

    def frames():
        yield from random_images(2, 3, 16, 16)
        raise RuntimeError("out of frames")

    with pytest.raises(RuntimeError, match="out of frames"):
        images.write_animation(frames(), tmp_path / f"x.{suffix}", fps=10)
    assert list(tmp_path.iterdir()) == []
