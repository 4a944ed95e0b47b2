"""Test set-up shared by all tests: the project root on the import path, GPU tests skipped where there is no GPU."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    """Skips tests marked `gpu` on a machine without CUDA."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
