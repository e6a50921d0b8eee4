"""What every test can rely on: one thread, no network, and the roots of real data."""

import os
import socket
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
_connect = socket.socket.connect


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing is downloaded unasked: connections leave this machine in no test."""

    def connect(self, address):
        local = self.family == getattr(socket, "AF_UNIX", None) or address[0] in (
            "localhost",
            "127.0.0.1",
            "::1",
        )
        if not local:
            raise AssertionError(f"a test tried to reach {address}")
        return _connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture
def data_root() -> Path:
    """Folder of real data sets; the test is skipped, saying so, where `NAS_DATA` names none."""
    named = os.environ.get("NAS_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("NAS_DATA names no folder of real data sets")
    return Path(named)
