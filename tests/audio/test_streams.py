"""Labels of fig. 4.7 by hand, mixing levels, padding, and the long stream with its truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nas_core.audio import (
    MFCC,
    Mixing,
    Spoken,
    evaluation_stream,
    make_sequence,
    make_streams,
    synthetic_corpus,
    window_labels,
    word_extent,
    word_share,
    write_truth,
)

SMALL = MFCC(n_fft=960, hop=640, n_mfcc=13)


@pytest.fixture(scope="module")
def corpus():
    return synthetic_corpus(speakers=10)


def test_shares_and_labels_by_hand():
    # Windows start every 200 ms: 0.0, 0.2, 0.4, … The word lasts from 1.1 s to 1.5 s.
    share = word_share(6, 17_600, 24_000, MFCC())
    np.testing.assert_allclose(share, [0, 0.25, 0.75, 1, 1, 1])
    assert window_labels(share, 7).tolist() == [0, 0, 7, 7, 7, 7]
    half = word_share(2, 16_000 - 3200, 16_000 + 3200, MFCC())
    assert half.tolist() == [0.5, 1] and window_labels(half, 3).tolist() == [3, 3]


def test_shares_against_counting_samples():
    rng = np.random.default_rng(0)
    for _ in range(20):
        begin = int(rng.integers(0, 30_000))
        end = begin + int(rng.integers(1, 16_000))
        word = np.zeros(64_000)
        word[begin:end] = 1
        counted = [word[t * 3200 : t * 3200 + 16_000].sum() / (end - begin) for t in range(12)]
        np.testing.assert_allclose(word_share(12, begin, end, MFCC()), counted)


def test_sequences_hold_the_word_where_they_say(corpus):
    rng, kinds = np.random.default_rng(1), []
    for _ in range(300):
        s = make_sequence(corpus, "training", rng, Mixing(noise_probability=0))
        assert 16_000 <= len(s.audio) <= 48_000
        kinds.append(s.word)
        if s.word:
            assert 0 <= s.begin < s.end <= len(s.audio)
            energy = s.audio.square()
            assert energy[s.begin : s.end].sum() >= 0.97 * energy.sum()
        else:
            assert not s.audio.any()
    kinds = np.array(kinds)
    assert abs((kinds == 0).mean() - 0.1) < 0.06 and abs((kinds == 1).mean() - 0.1) < 0.06
    assert set(kinds) == set(range(12))


def test_noise_stays_below_the_ratio(corpus):
    clean, noisy = (
        make_sequence(corpus, "training", np.random.default_rng(5), Mixing(noise_probability=p))
        for p in (0.0, 1.0)
    )
    noise = noisy.audio - clean.audio
    word = clean.audio[clean.begin : clean.end]
    ratio = noise.square().mean().sqrt() / word.square().mean().sqrt()
    assert 0 < ratio <= 0.31
    with pytest.raises(ValueError, match="count is 0"):
        make_streams(corpus, "validation", 0)
    with pytest.raises(ValueError, match="ratio is 0.6.*5 dB"):
        Mixing(noise_ratio=0.6)
    with pytest.raises(ValueError, match="0.6, 0.6.*0…1 in sum"):
        Mixing(unknown=0.6, silence=0.6)


def test_padded_batches_equal_the_maps_of_each_sequence(corpus):
    streams = make_streams(corpus, "validation", 12, mfcc=SMALL, seed=4)
    again = make_streams(corpus, "validation", 12, mfcc=SMALL, seed=4)
    assert torch.equal(streams.inner, again.inner) and torch.equal(streams.labels, again.labels)
    rng = np.random.default_rng([4, 1])
    maps = streams.windows(torch.arange(12))
    assert len(set(streams.length.tolist())) > 1
    for i in range(12):
        s = make_sequence(corpus, "validation", rng, Mixing())
        expected = SMALL.windows(s.audio)
        assert len(expected) == streams.length[i] == streams.valid[i].sum()
        assert torch.equal(maps[i, : len(expected), 0], expected)
        assert not streams.labels[i, len(expected) :].any()
        assert int(streams.word[i]) == s.word
    shortest = streams.length.argmin().unsqueeze(0)
    assert streams.windows(shortest).shape[1] == streams.length[shortest]


def test_class_weights_balance(corpus):
    streams = make_streams(corpus, "training", 60, mfcc=SMALL)
    labels = streams.labels[streams.valid]
    weights = streams.class_weights()
    total = torch.zeros(12).index_add_(0, labels, weights[labels])
    present = total > 0
    assert (total[present] / total[present].mean() - 1).abs().max() < 1e-4
    torch.testing.assert_close(weights[labels].mean(), torch.tensor(1.0))


def test_evaluation_stream(corpus):
    stream = evaluation_stream(corpus, 60, seed=2)
    again = evaluation_stream(corpus, 60, seed=2)
    assert torch.equal(stream.audio, again.audio) and stream.truth == again.truth
    assert not torch.equal(stream.audio, evaluation_stream(corpus, 60, seed=3).audio)
    assert stream.seconds == 60 and 16 <= len(stream.truth) <= 24
    starts = np.array([s.ms for s in stream.truth])
    assert np.diff(starts).min() >= 2000 and starts[-1] + 1000 <= 60_000
    # Where no word is, only the background is left, and that changes.
    quiet = evaluation_stream(corpus, 60, seed=2, noise_ratio=0.0)
    for spoken in quiet.truth:
        at = int(spoken.ms * 16)
        assert word_extent(quiet.audio[at : at + 16_000])[1] > 0
        quiet.audio[at : at + 16_000] = 0
    assert not quiet.audio.any()
    with pytest.raises(ValueError, match="gap is 1"):
        evaluation_stream(corpus, 60, gap=1)


def test_truth_in_the_format_of_streaming_test(tmp_path):
    truth = [Spoken("yes", 1038.8125), Spoken("unknown", 4003.5)]
    write_truth(truth, tmp_path / "t.txt")
    assert (tmp_path / "t.txt").read_text() == "yes, 1038.812500\nunknown, 4003.500000\n"


def test_a_share_just_below_half_is_background():
    shares = np.array([0.0, 0.4501, 0.4999, 0.5, 0.5001, 1.0])
    assert window_labels(shares, 4).tolist() == [0, 0, 0, 4, 4, 4]


@pytest.mark.parametrize("split", ["training", "validation", "testing"])
def test_streams_use_clips_of_their_split_only(corpus, split):
    """Clips of the other splits are replaced by noise, and nothing changes."""
    poisoned = corpus.clips.clone()
    others = torch.from_numpy(corpus.splits != split)
    poisoned[others] = torch.randint(-9000, 9000, poisoned[others].shape, dtype=torch.int16)
    changed = replace(corpus, clips=poisoned)
    streams = (make_streams(c, split, 40, mfcc=SMALL, seed=5) for c in (corpus, changed))
    first, second = streams
    assert torch.equal(first.inner, second.inner) and torch.equal(first.labels, second.labels)
    long = [evaluation_stream(c, 30, split=split).audio for c in (corpus, changed)]
    assert torch.equal(*long)


@pytest.mark.parametrize("loudness", [1.0, 0.01, 3.0])
def test_signal_to_noise_ratio_whatever_the_level_of_the_recordings(corpus, loudness):
    """Amplitude of noise / word is U(0, 0.3): its mean is 0.15, never more than 0.3."""
    noises = [loudness * noise for noise in corpus.noises]
    changed = replace(corpus, noises=noises)
    ratios = []
    for seed in range(150):
        clean, noisy = (
            make_sequence(changed, "training", np.random.default_rng(seed), Mixing(p, silence=0))
            for p in (0.0, 1.0)
        )
        word = clean.audio[clean.begin : clean.end].square().mean().sqrt()
        ratios.append(float((noisy.audio - clean.audio).square().mean().sqrt() / word))
    assert max(ratios) < 0.32 and np.mean(ratios) == pytest.approx(0.15, abs=0.02)
    quiet, loud = (evaluation_stream(changed, 120, noise_ratio=r).audio for r in (0.0, 0.3))
    usual = evaluation_stream(corpus, 120, noise_ratio=0.3).audio
    torch.testing.assert_close(loud, usual, rtol=0, atol=1e-4)
    assert 0.05 < (loud - quiet).std() / quiet[quiet != 0].std() < 0.35


def test_features_of_another_rate_are_refused(corpus):
    with pytest.raises(ValueError, match="rate is 8000; it must be 16000 Hz"):
        make_streams(corpus, "training", 2, mfcc=MFCC(rate=8000))


def test_missing_clips_are_named(corpus):
    with pytest.raises(ValueError, match="holdout"):
        make_streams(corpus, "holdout", 1)
