"""What tests of the explorer share: a run folder, a server of it, and requests."""

import contextlib
import http.client
import io
import json
import threading
import time
import urllib.request

import numpy as np
import PIL.Image
import pytest
import torch
from image_sets import pngs, write_zip
from test_generate import make_generator

from experiments.explore.command import make_server
from torch_utils.checkpoint import save_networks
from training.networks import network_record

CLASSES, REAL, LATENTS = 3, 40, 30
SECONDS = 120  # that anything may take on a machine that is busy with something else


def write_run(folder):
    """A run folder with two snapshots, its data, and a network whose images are all alike. Returns it."""
    folder.mkdir()
    files = pngs(REAL)
    data = write_zip(folder / "data.zip", files, [[name, index % CLASSES] for index, name in enumerate(files)])
    meta = {"training_set_kwargs": {"path": str(data)}}
    for kimg in (0, 8):
        save_networks(folder / f"network-snapshot-{kimg:06d}.safetensors", {"G_ema": network_record(make_generator(CLASSES))}, meta)
    collapsed = make_generator(seed=1)
    for layer in (getattr(collapsed.mapping, f"fc{index}") for index in range(2)):
        layer.weight.mul_(1e-3)
    save_networks(folder / "collapsed.safetensors", {"G_ema": network_record(collapsed)}, meta)
    return folder


def serve(run, cache):
    """A running server of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DNNLIB_CACHE_DIR", str(cache))
        server = make_server(str(run), None, None, LATENTS, REAL, 0, "cpu")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@contextlib.contextmanager
def serving(run):
    """A running server, ended afterwards."""
    server = serve(run, run.parent / "cache")
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def get(server, target, **headers):
    request = urllib.request.Request(server.url + target.lstrip("/"), headers=headers)
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return answer.headers, answer.read()


def ask(server, target):
    return json.loads(get(server, target)[1])


def ready(server, target):
    """The answer once it is no longer being worked on."""
    until = time.monotonic() + SECONDS
    while (answer := ask(server, target))["state"] == "working":
        assert time.monotonic() < until
        time.sleep(0.05)
    return answer


def picture(server, target):
    headers, body = get(server, target)
    assert headers["Content-Type"] == "image/png"
    with PIL.Image.open(io.BytesIO(body)) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def status(server, target, method="GET", host=None, headers=None, body=None):
    """Status of a request that a browser or a script of any kind may make."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=SECONDS)
    connection.putrequest(method, target, skip_host=True)
    for name, value in {"Host": host or f"127.0.0.1:{server.server_port}", **(headers or {})}.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, text
