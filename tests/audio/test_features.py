"""Each stage of the MFCC pipeline against scipy and numpy; streams against files, bit by bit."""

from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

import nas_core
from nas_core.audio import MFCC, StreamingMFCC

SETTINGS = [MFCC(), MFCC(hop=320), MFCC(n_fft=400, hop=80, n_mfcc=13), MFCC(n_fft=960, hop=640)]


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def test_one_second_is_101_by_40():
    assert MFCC().shape == (101, 40)
    assert MFCC()(noise(16_000)).shape == (101, 40)


def mel_filters(m: MFCC) -> np.ndarray:
    """Triangles between 42 points equally spaced in mel, written out with loops."""
    mel = np.linspace(*(2595 * np.log10(1 + f / 700) for f in (m.low, m.high)), m.n_mels + 2)
    points = 700 * (10 ** (mel / 2595) - 1)
    bins = np.arange(m.n_fft // 2 + 1) * m.rate / m.n_fft
    out = np.zeros((len(bins), m.n_mels))
    for k in range(m.n_mels):
        left, centre, right = points[k : k + 3]
        for b, f in enumerate(bins):
            if left < f <= centre:
                out[b, k] = (f - left) / (centre - left)
            elif centre < f < right:
                out[b, k] = (right - f) / (right - centre)
    return out


@pytest.mark.parametrize("m", SETTINGS, ids=str)
def test_stages_against_numpy_and_scipy(m):
    clip = noise(16_000)
    stages = m.stages(clip)
    half = m.n_fft // 2
    padded = np.pad(clip.double().numpy(), half, mode="reflect")
    window = scipy.signal.get_window("hann", m.n_fft)
    for i in range(m.shape[0]):
        frame = padded[i * m.hop : i * m.hop + m.n_fft] * window
        power = np.abs(np.fft.rfft(frame)) ** 2
        mel = power @ mel_filters(m)
        log_mel = np.log(mel + 1e-6)
        mfcc = scipy.fft.dct(log_mel, type=2, norm="ortho")[: m.n_mfcc]
        np.testing.assert_allclose(stages.frames[i], frame, atol=1e-6)
        np.testing.assert_allclose(stages.power[i], power, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stages.mel[i], mel, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stages.log_mel[i], log_mel, atol=1e-3)
        np.testing.assert_allclose(stages.mfcc[i], mfcc, atol=2e-3)
        if i >= 3 and m is not SETTINGS[0]:
            break
    assert stages.mfcc.shape == m.shape


def test_mel_energies_agree_with_torchaudio():
    m, clip = MFCC(), noise(16_000)
    reference = torchaudio.transforms.MelSpectrogram(
        16_000, 480, hop_length=160, f_min=20, f_max=4000, n_mels=40
    )(clip).T
    torch.testing.assert_close(m.stages(clip).mel, reference, rtol=1e-4, atol=1e-5)


def test_a_tone_lands_in_its_filter():
    m = MFCC()
    t = torch.arange(16_000) / 16_000
    for hz in (300.0, 1000.0, 2500.0):
        energy = m.stages(torch.sin(2 * torch.pi * hz * t)).mel[50]
        centre = (m.filters.argmax(0) * m.rate / m.n_fft)[energy.argmax()]
        assert abs(centre - hz) < 120


@pytest.mark.parametrize("m", SETTINGS, ids=str)
def test_windows_of_a_stream_equal_the_maps_of_its_seconds(m):
    stream = noise(16_000 * 2 + 7777)
    windows = m.windows(stream)
    assert len(windows) == m.num_windows(len(stream)) == (7777 + 16_000) // 3200 + 1
    for t, window in enumerate(windows):
        assert torch.equal(window, m(stream[t * m.step : t * m.step + m.window]))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=30),
    which=st.sampled_from(range(len(SETTINGS))),
)
def test_streaming_is_bit_equal_for_any_packets(sizes, which):
    m = SETTINGS[which]
    stream = noise(40_000, seed=1)
    engine, maps, at = StreamingMFCC(m), [], 0
    while at < len(stream):
        for size in sizes:
            maps += engine.push(stream[at : at + size]) if at < len(stream) else []
            at += size
    assert len(maps) == m.num_windows(len(stream))
    assert torch.equal(torch.stack(maps), m.windows(stream))


def test_one_sample_packets_and_reset():
    m, stream = MFCC(), noise(19_300)
    engine = StreamingMFCC(m)
    for _ in range(2):
        maps = [out for sample in stream.split(1) for out in engine.push(sample)]
        assert torch.equal(torch.stack(maps), m.windows(stream))
        engine.reset()


def test_streaming_computes_only_the_new_frames(monkeypatch):
    m, stream = MFCC(), noise(32_000)
    engine = StreamingMFCC(m)
    engine.push(stream[:16_000])
    rows = []
    real = MFCC._rows
    monkeypatch.setattr(MFCC, "_rows", lambda self, f: rows.append(len(f)) or real(self, f))
    assert len(engine.push(stream[16_000:19_200])) == 1
    assert sum(rows) == 20 + 4  # 200 ms of frames, and two mirrored ones at each end


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="mono"):
        MFCC()(torch.zeros(2, 16_000))
    with pytest.raises(ValueError, match="float64"):
        MFCC()(torch.zeros(16_000, dtype=torch.float64))
    with pytest.raises(ValueError, match="clip is 100; it must be 241 samples"):
        MFCC()(torch.zeros(100))
    with pytest.raises(ValueError, match="stream is 15999; it must be 16000 samples"):
        MFCC().windows(torch.zeros(15_999))
    with pytest.raises(ValueError, match="hop=150"):
        MFCC(hop=150)
    with pytest.raises(ValueError, match="9000"):
        MFCC(high=9000)


def test_a_bad_packet_is_refused_and_leaves_the_stream_as_it_was():
    m, stream = MFCC(), noise(19_300)
    engine, maps = StreamingMFCC(m), []
    for k, packet in enumerate(stream.split(320)):
        if k in (3, 52):
            broken = packet.clone()
            broken[7] = float("nan")
            with pytest.raises(ValueError, match="sample 7 of 320 is nan"):
                engine.push(broken)
            with pytest.raises(ValueError, match=r"loudest sample is .*divide .* by 32768"):
                engine.push(packet * 32_768)
        maps += engine.push(packet)
    assert torch.equal(torch.stack(maps), m.windows(stream))
    for audio in (stream * 32_768, torch.full((16_000,), float("inf"))):
        with pytest.raises(ValueError, match="32768|sample 0 of 16000 is inf"):
            m(audio)


def test_torchaudio_is_imported_in_one_place():
    package = Path(nas_core.__file__).parent
    users = [p.name for p in package.glob("**/*.py") if "import torchaudio" in p.read_text()]
    assert set(users) <= {"files.py", "doctor.py"}
