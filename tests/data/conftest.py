"""The unpacked real data sets, where a machine has them."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def real_root():
    """Folder with the real sets; tests that need it are skipped loudly elsewhere."""
    root = os.environ.get("NAS_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("NAS_DATA does not point at unpacked real data sets: real loaders NOT tested")
    return Path(root)


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to open a connection fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("something was about to be downloaded")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
