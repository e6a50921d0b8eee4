"""Recordings of any format, the published splits, and the two kinds of corpus."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from nas_core.audio import (
    AudioFileError,
    load_speech_commands,
    read_all,
    read_audio,
    split_of,
    synthetic_corpus,
    word_extent,
)
from nas_core.audio.corpus import speaker_of


def tone(rate: int, hz: float = 440.0, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype("float32")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_formats_rates_and_channels(tmp_path, name, rate):
    mono = tone(rate)
    soundfile.write(tmp_path / name, np.stack([mono, mono], 1), rate)
    audio = read_audio(tmp_path / name)
    expected = tone(16_000)
    assert audio.dtype == torch.float32 and abs(len(audio) - len(expected)) <= 1
    middle = slice(1000, 7000)  # resampling filters and codecs need room at the ends
    assert np.abs(audio[middle].numpy() - expected[middle]).max() < 0.03


def test_stereo_is_the_mean_of_its_channels(tmp_path):
    left, right = tone(16_000, 300), tone(16_000, 900)
    soundfile.write(tmp_path / "s.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "s.wav"), (left + right) / 2, atol=1e-6)


def test_broken_and_empty_files_are_named_and_counted(tmp_path):
    good, broken, empty = (tmp_path / n for n in ("good.wav", "broken.wav", "empty.wav"))
    soundfile.write(good, tone(16_000), 16_000)
    broken.write_bytes(b"this is no sound")
    soundfile.write(empty, np.zeros(0, dtype="float32"), 16_000)
    with pytest.raises(AudioFileError, match="broken.wav"):
        read_audio(broken)
    with pytest.raises(AudioFileError, match="empty.wav holds no samples"):
        read_audio(empty)
    with pytest.raises(FileNotFoundError, match="nowhere.wav"):
        read_audio(tmp_path / "nowhere.wav")
    (tmp_path / "link.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.warns(UserWarning, match="skipped 4 of 5 recordings"):
        audio, kept, skipped = read_all(sorted(tmp_path.iterdir()))
    assert len(audio) == 1 and kept == [good]
    named = ("broken.wav", "empty.wav", "folder.wav", "link.wav")
    assert all(name in message for name, message in zip(named, skipped, strict=True))


def test_samples_at_another_scale_or_not_finite_are_refused(tmp_path):
    loud, broken = tone(16_000) * 32_768, tone(16_000)
    broken[5] = np.nan
    for name, samples, message in (("loud", loud, "divide"), ("nan", broken, "sample 5 of")):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000, subtype="FLOAT")
        with pytest.raises(AudioFileError, match=rf"{name}.wav: .*{message}"):
            read_audio(tmp_path / f"{name}.wav")
    soundfile.write(tmp_path / "int.wav", (tone(16_000) * 32_767).astype("int16"), 16_000)
    assert 0.4 < read_audio(tmp_path / "int.wav").abs().max() < 0.6


# Speakers of Speech Commands and the split that its published lists put them in.
PUBLISHED = {
    "training": ["00176480", "004ae714", "00b01445", "00f0204f"],
    "validation": ["099d52ad", "0ab3b47d", "0e17f595", "105e72bb"],
    "testing": ["563aa4e6", "97f4c236", "e41a903b", "0aad3227"],
}


@pytest.mark.parametrize("split", PUBLISHED)
def test_splits_are_the_published_ones(split):
    assert {split_of(f"{speaker}_nohash_1.wav") for speaker in PUBLISHED[split]} == {split}


def test_speakers_never_change_split():
    for take in range(5):
        assert split_of(f"0a7c2a8d_nohash_{take}.wav") == split_of("0a7c2a8d_nohash_0.wav")
    assert speaker_of("yes/0a7c2a8d_nohash_1.wav") == "0a7c2a8d"
    names = [f"{i:08x}_nohash_0.wav" for i in range(4000)]
    shares = {s: np.mean([split_of(n) == s for n in names]) for s in ("validation", "testing")}
    assert all(abs(share - 0.1) < 0.02 for share in shares.values())
    with pytest.raises(ValueError, match="percentages"):
        split_of("x.wav", 60, 60)


def write_layout(root: Path, lists: bool) -> Path:
    (root / "_background_noise_").mkdir(parents=True)
    soundfile.write(root / "_background_noise_" / "hiss.wav", tone(16_000, seconds=2), 16_000)
    for word in ("yes", "no", "cat"):
        (root / word).mkdir()
        for speaker in ("aaaaaaaa", "bbbbbbbb", "cccccccc"):
            soundfile.write(root / word / f"{speaker}_nohash_0.wav", tone(16_000), 16_000)
    if lists:
        (root / "validation_list.txt").write_text("yes/bbbbbbbb_nohash_0.wav\n")
        (root / "testing_list.txt").write_text("no/cccccccc_nohash_0.wav\n")
    return root


def test_layout_with_and_without_lists(tmp_path):
    corpus = load_speech_commands(write_layout(tmp_path / "a", True), ("yes", "no"))
    assert corpus.classes == ("bg-noise", "unknown", "yes", "no")
    assert corpus.clips.shape == (9, 16_000)
    split = dict(zip(zip(corpus.words, corpus.speakers, strict=True), corpus.splits, strict=True))
    assert split["yes", "bbbbbbbb"] == "validation" and split["no", "cccccccc"] == "testing"
    assert split["cat", "aaaaaaaa"] == "training"
    assert {corpus.label(int(i)) for i in np.flatnonzero(corpus.words == "cat")} == {1}
    hashed = load_speech_commands(write_layout(tmp_path / "b", False), ("yes", "no"))
    for speaker, found in zip(hashed.speakers, hashed.splits, strict=True):
        assert found == split_of(f"{speaker}_nohash_0.wav")
    limited = load_speech_commands(tmp_path / "a", ("yes", "no"), limit_per_word=2)
    assert len(limited) == 6


@pytest.mark.parametrize(
    "written", [r"{word}\{name}", "./{word}/{name}", "/data/sc/{word}/{name}", "{word}/{name}\r"]
)
def test_lists_of_any_system_keep_held_out_clips_out_of_training(tmp_path, written):
    root = write_layout(tmp_path / "a", True)
    for split, speaker in (("validation", "bbbbbbbb"), ("testing", "cccccccc")):
        names = [(word, f"{speaker}_nohash_0.wav") for word in ("yes", "no", "cat")]
        lines = "\n".join(written.format(word=word, name=name) for word, name in names)
        (root / f"{split}_list.txt").write_text("\ufeff" + lines + "\n", encoding="utf-8")
    corpus = load_speech_commands(root, ("yes", "no"))
    assert set(corpus.speakers[corpus.indices("training")]) == {"aaaaaaaa"}
    assert [len(corpus.indices(s)) for s in ("training", "validation", "testing")] == [3, 3, 3]
    assert corpus.skipped == ()


def test_what_a_list_or_folder_has_left_over_is_reported_or_refused(tmp_path):
    root = write_layout(tmp_path / "a", True)
    (root / "yes" / "aaaaaaaa_nohash_0.wav").rename(root / "yes" / "aaaaaaaa_nohash_0.WAV")
    (root / "yes" / "notes.txt").write_text("not a recording")
    with (root / "testing_list.txt").open("a") as lines:
        lines.write("no/dddddddd_nohash_0.wav\n")
    corpus = load_speech_commands(root, ("yes", "no"))
    assert len(corpus) == 9  # the one in capitals is read
    assert len(corpus.skipped) == 2 and "notes.txt is no .wav file" in corpus.skipped[0]
    assert "testing_list.txt: 1 of 2 entries name no clip" in corpus.skipped[1]
    (root / "validation_list.txt").write_text("bbbbbbbb_nohash_0\n")
    with pytest.raises(ValueError, match="validation_list.txt names none of the clips"):
        load_speech_commands(root, ("yes", "no"))


def test_layout_errors_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="_background_noise_"):
        load_speech_commands(tmp_path)
    root = write_layout(tmp_path / "a", True)
    with pytest.raises(ValueError, match="marvin"):
        load_speech_commands(root, ("yes", "marvin"))
    for damaged, kind in (("_background_noise_", "noise"), ("*", "clip")):
        for path in root.glob(f"{damaged}/*.wav"):
            path.write_bytes(b"")
        with (
            pytest.warns(UserWarning, match="skipped"),
            pytest.raises(ValueError, match=f"no readable {kind} below"),
        ):
            load_speech_commands(root, ("yes", "no"))


@pytest.fixture(scope="module")
def corpus():
    return synthetic_corpus(speakers=10, seed=3)


def test_synthesised_words(corpus):
    again = synthetic_corpus(speakers=10, seed=3)
    assert torch.equal(corpus.clips, again.clips) and not torch.equal(
        corpus.clips, synthetic_corpus(speakers=10, seed=4).clips
    )
    assert len(corpus.classes) == 12 and len(corpus) == 240
    speakers = {s: set(corpus.speakers[corpus.indices(s)]) for s in ("training", "testing")}
    assert not speakers["training"] & speakers["testing"]
    lengths = np.array([np.subtract(*word_extent(corpus.clip(i))[::-1]) for i in range(240)])
    assert lengths.min() > 800 and lengths.max() < 15_200
    assert len(corpus.noises) == 6 and all(n.std() > 0.01 for n in corpus.noises)


def test_voices_have_no_offset(corpus):
    """Glottal pulses of one sign had a mean of half a deviation; microphones carry none."""
    offsets = []
    for i in range(len(corpus)):
        begin, end = word_extent(corpus.clip(i))
        word = corpus.clip(i)[begin:end]
        offsets.append(abs(float(word.mean() / word.std())))
    assert np.median(offsets) < 0.01 and max(offsets) < 0.05


def test_word_extent_finds_the_word():
    clip = torch.zeros(16_000)
    clip[5000:9000] = torch.from_numpy(tone(16_000, seconds=0.25))
    begin, end = word_extent(clip)
    assert 5000 <= begin < 5100 and 8900 < end <= 9000
    assert word_extent(torch.zeros(100)) == (0, 100)


@pytest.mark.skipif("NAS_DATA" not in os.environ, reason="NAS_DATA names no real recordings")
def test_real_recordings_load_and_agree_with_their_lists():
    folders = sorted(Path(os.environ["NAS_DATA"]).glob("SpeechCommands/speech_commands_v0.0*"))
    if not folders:
        pytest.skip("no SpeechCommands folder below NAS_DATA")
    corpus = load_speech_commands(folders[-1], ("go", "left"), limit_per_word=20)
    by_split = [set(corpus.speakers[corpus.indices(s)]) for s in ("training", "testing")]
    assert not by_split[0] & by_split[1]
