"""The benchmark of generation prints one JSON line whose figures follow from its rates, and times what generate.py does."""

import json

import pytest
import torch
from click.testing import CliRunner

from bench import generate
from training.sampling import Renderer, default_batch

CPU = torch.device("cpu")


def test_one_json_line_with_its_figures():
    options = ["--cfg=demo", "--resolution=8", "--device=cpu", "--batch=4", "--images=8", "--repeats=1", "--json"]
    result = CliRunner().invoke(generate.main, options, catch_exceptions=False)
    assert result.exit_code == 0 and result.stdout.count("\n") == 1
    figures = json.loads(result.stdout)
    rates = figures["images_per_sec_by_way"]
    assert figures["images_per_sec"] == rates["batched"] > 0 and figures["batch"] == 4
    for name, way in (("one_at_a_time", "one_at_a_time"), ("reference_ops", "reference_ops"), ("plain", "plain")):
        assert figures[f"speedup_over_{name}"] == pytest.approx(rates["batched"] / rates[way])


def test_a_rate_counts_all_images_at_the_asked_batch(monkeypatch):
    G = generate.build_generator("demo", 8, "fp32", CPU)
    sizes, synthesis = [], type(G.synthesis).forward
    monkeypatch.setattr(type(G.synthesis), "forward", lambda self, ws, **look: (sizes.append(len(ws)), synthesis(self, ws, **look))[1])
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(generate.time, "perf_counter", lambda: next(clock))
    assert generate.images_per_second(G, CPU, generate.Way(batch=4, ops="reference", images=10)) == 10 / 2
    assert sizes == [4, 4, 2]


def test_the_first_run_is_not_counted_and_the_best_of_the_others_is(monkeypatch):
    rates = iter([9.0, 1.0, 3.0, 2.0, 4.0])
    monkeypatch.setattr(generate, "images_per_second", lambda *_: next(rates))
    assert generate.compare_ways(None, CPU, {"a": generate.Way(1, "auto", 1)}, repeats=4) == {"a": 4.0}


def test_batches_shrink_with_the_image_and_never_vanish():
    for device in (CPU, torch.device("cuda")):
        sizes = [default_batch((2**k, 2**k), device) for k in range(2, 15)]
        assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 1
    assert default_batch((256, 256), torch.device("cuda")) == 64 > default_batch((256, 256), CPU) == 2


@pytest.mark.parametrize(("device", "events"), [("cpu", "s0 t0 s1 t1 s2 t2"), ("cuda", "s0 s1 t0 s2 t1 t2")])
def test_a_gpu_starts_the_next_batch_before_the_last_is_taken(monkeypatch, device, events):
    """s: a batch is started, t: it is waited for. Images come in their order."""
    noted = []

    def synthesize(self, ws):
        noted.append(f"s{int(ws[0])}")
        return lambda: (noted.append(f"t{int(ws[0])}"), ws)[1]

    monkeypatch.setattr(Renderer, "_synthesize", synthesize)
    pictures = Renderer(None, torch.device(device), batch=2).render(torch.tensor([0, 0, 1, 1, 2]), range(5))
    assert [int(picture) for picture in pictures] == [0, 0, 1, 1, 2]
    assert " ".join(noted) == events


@pytest.mark.gpu
def test_cuda_images_do_not_depend_on_the_batch():
    device = torch.device("cuda")
    G = generate.build_generator("demo", 16, "fp32", device)
    seeds, classes = range(11), [None] * 11
    one, many = (torch.stack(list(Renderer(G, device, batch).render_seeds(seeds, classes))) for batch in (1, 4))
    assert (one.int() - many.int()).abs().max() <= 1 and one.float().std() > 1
