"""Downloads: what is there already, what arrives, and what may go wrong on the way."""

import hashlib
import io
import tarfile
from dataclasses import replace
from urllib.error import URLError

import pytest
from torchvision import datasets

from nas_core import data
from nas_core.continual import Real
from nas_core.data.real import SETS


@pytest.fixture
def offered(monkeypatch):
    """`offered(name, files, …)` puts a small archive in place of a published one."""
    served = {}

    def offer(name, files, *, sha256=None):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for path, content in files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        url = f"https://example.org/{name}.tar.gz"
        served[url] = buffer.getvalue()
        checksum = sha256 or hashlib.sha256(served[url]).hexdigest()
        count = sum(path.endswith(".wav") and "_nohash_" in path for path in files)
        spec = replace(SETS[name], archive=url, checksum=checksum, count=count)
        monkeypatch.setitem(SETS, name, spec)

    def answer(url):
        body = io.BytesIO(served[url])
        body.headers = {"Content-Length": str(len(served[url]))}
        return body

    monkeypatch.setattr("nas_core.data.real.urlopen", answer)
    return offer


SPEECH = "speech_commands_v0.02"
CLIPS = {"./yes/a_nohash_0.wav": b"1", "./no/b_nohash_0.wav": b"2", "./testing_list.txt": b""}


def test_an_archive_arrives_whole_and_is_recognised(tmp_path, offered, capsys):
    offered(SPEECH, CLIPS)
    assert data.FILES[SPEECH].missing(tmp_path)
    assert data.fetch(SPEECH, tmp_path / "new") == tmp_path / "new"
    folder = tmp_path / "new" / "SpeechCommands" / SPEECH
    assert (folder / "yes/a_nohash_0.wav").read_bytes() == b"1"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["SpeechCommands"]
    SETS[SPEECH] = replace(SETS[SPEECH], archive="https://example.org/gone")
    data.fetch(SPEECH, tmp_path / "new")  # is there: nothing is downloaded
    (folder / "yes/a_nohash_0.wav").unlink()  # as an interrupted unpacking would leave it
    with pytest.raises(data.CorruptData, match="holds 1 of the 2 published files"):
        data.fetch(SPEECH, tmp_path / "new")


def test_a_changed_archive_leaves_nothing_behind(tmp_path, offered):
    offered(SPEECH, CLIPS, sha256="0" * 64)
    with pytest.raises(data.CorruptData, match="is damaged: its sha256 is"):
        data.fetch(SPEECH, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [n for n, spec in SETS.items() if spec.files])
def test_torchvision_downloads_into_a_hidden_folder_first(name, tmp_path, monkeypatch):
    """What arrives with another checksum is not given its name; what is right is kept."""
    content = {file: f"content of {file}".encode() for file in SETS[name].files}
    sums = {file: hashlib.md5(c).hexdigest() for file, c in content.items()}
    calls = []

    def pretend(root, download, **kwargs):
        calls.append(kwargs)
        assert download and root == str(tmp_path / f".{name}.part")
        for file, raw in content.items():
            path = tmp_path / f".{name}.part" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)

    monkeypatch.setattr(datasets, SETS[name].torchvision, pretend)
    with pytest.raises(data.CorruptData, match="is damaged: its md5 is"):
        data.fetch(name, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(SETS, name, replace(SETS[name], files=sums))
    calls.clear()
    data.fetch(name, tmp_path)
    assert calls == (
        [{"split": "train"}, {"split": "test"}] if name == "svhn" else [{"train": True}]
    )
    assert all((tmp_path / file).read_bytes() == raw for file, raw in content.items())
    data.fetch(name, tmp_path)
    assert len(calls) <= 2 and not list(tmp_path.glob(".*"))
    (tmp_path / next(iter(content))).write_bytes(b"cut off")
    with pytest.raises(data.CorruptData, match="Delete it and fetch it again"):
        data.fetch(name, tmp_path)


@pytest.mark.parametrize("name", ["svhn", "dtd"])
def test_streams_name_the_command(name, tmp_path):
    with pytest.raises(data.DataNotFound, match=f"nas-workbook data fetch {name}\n"):
        Real(str(tmp_path)).pool(name, "train")


def test_they_are_no_sets_of_examples():
    with pytest.raises(ValueError, match="chapters 06 and 07 read it"):
        data.load("speech_commands_v0.02")


@pytest.mark.parametrize("name", ["svhn", "cifar10", SPEECH])
def test_without_a_network(name, tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("nas_core.data.real.urlopen", unreachable)
    with pytest.raises(data.DataNotFound, match=rf"{name} could not be downloaded \(no route"):
        data.fetch(name, tmp_path)


def test_a_root_that_cannot_be_written_gets_a_sentence(tmp_path, offered):
    offered(SPEECH, CLIPS)
    (tmp_path / "file").write_text("")
    with pytest.raises(data.DataNotFound, match=r"cannot be put into .*file .*give a folder"):
        data.fetch(SPEECH, tmp_path / "file")
    with pytest.raises(data.DataNotFound, match="mnist is not in"):
        data.load("mnist", root=tmp_path / "file")
