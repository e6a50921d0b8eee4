"""Sets known by their files only: what is downloaded, and when nothing is."""

from urllib.error import URLError

import pytest
import torchaudio
import torchvision

from nas_core import data
from nas_core.continual import Real

CALLS = {
    "svhn": (torchvision.datasets, "SVHN", [{"split": "train"}, {"split": "test"}]),
    "dtd": (torchvision.datasets, "DTD", [{}]),
    "speech_commands_v0.01": (
        torchaudio.datasets,
        "SPEECHCOMMANDS",
        [{"url": "speech_commands_v0.01"}],
    ),
    "speech_commands_v0.02": (
        torchaudio.datasets,
        "SPEECHCOMMANDS",
        [{"url": "speech_commands_v0.02"}],
    ),
}


@pytest.mark.parametrize("name", data.FILES)
def test_fetch_downloads_once(name, tmp_path, monkeypatch):
    module, cls, expected = CALLS[name]
    calls = []

    def pretend(root, **kwargs):
        assert str(root) == str(tmp_path)
        calls.append(kwargs)
        for mark in data.FILES[name].marks:
            (tmp_path / mark).mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(module, cls, pretend)
    assert data.fetch(name, tmp_path) == tmp_path
    assert calls == [{**kwargs, "download": True} for kwargs in expected]
    data.fetch(name, tmp_path)
    assert len(calls) == len(expected)


@pytest.mark.parametrize("name", ["svhn", "dtd"])
def test_streams_name_the_command(name, tmp_path):
    with pytest.raises(data.DataNotFound, match=f"nas-workbook data fetch {name}\n"):
        Real(str(tmp_path)).pool(name, "train")


def test_they_are_no_sets_of_examples():
    with pytest.raises(ValueError, match="chapters 06 and 07 read it"):
        data.load("speech_commands_v0.02")


def test_an_interrupted_download_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "DTD", lambda root, download: None)
    with pytest.raises(data.DataNotFound, match=r"dtd/dtd/images is missing .* fetch dtd again"):
        data.fetch("dtd", tmp_path)


@pytest.mark.parametrize("name", ["svhn", "cifar10"])
def test_without_a_network(name, tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(data.DataNotFound, match=rf"{name} could not be downloaded \(no route"):
        data.fetch(name, tmp_path)
