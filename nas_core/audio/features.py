"""From a waveform to MFCC maps, for whole clips and packet by packet (thesis section 4.2)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from nas_core.audio.files import check_audio, torchaudio_functional
from nas_core.training import require

# Matrix products of different heights may round differently in the last bit. All frames are
# computed in blocks of one shape, so that a stream and a file have the same features bit by bit.
_BLOCK = 32
_FLOOR = 1e-6  # added to the mel energies, so that digital silence has a logarithm


class Stages(NamedTuple):
    """What each step of the pipeline makes of a clip; F frames."""

    frames: Tensor  # [F, n_fft], cut out, centred on multiples of hop, and tapered
    power: Tensor  # [F, n_fft // 2 + 1], periodogram |X|²
    mel: Tensor  # [F, n_mels], energies behind triangular filters
    log_mel: Tensor  # [F, n_mels], natural logarithm
    mfcc: Tensor  # [F, n_mfcc], orthonormal DCT-II


@dataclass(frozen=True)
class MFCC:
    """Mel-frequency cepstral coefficients; the defaults give 101 × 40 per second.

    Frame i is centred on sample `i · hop`; the signal is mirrored at the ends, as in `torch.stft`.
    """

    rate: int = 16_000  # samples per second
    n_fft: int = 480  # samples per frame: 30 ms
    hop: int = 160  # samples from frame to frame: 10 ms
    n_mels: int = 40
    n_mfcc: int = 40
    low: float = 20.0  # Hz, lower end of the first filter
    high: float = 4_000.0  # Hz, upper end of the last filter
    window: int = 16_000  # samples per map: one second
    step: int = 3_200  # samples from map to map in a stream: 200 ms

    def __post_init__(self):
        hop, ends, half = self.hop, (self.low, self.high), self.rate / 2
        require(self.n_fft % 2 == 0, "n_fft", self.n_fft, "even")
        require(self.window % hop == 0, "window", self.window, f"a multiple of hop={hop}")
        require(self.step % hop == 0, "step", self.step, f"a multiple of hop={hop}")
        require(0 <= ends[0] < ends[1] <= half, "(low, high)", ends, f"increasing in 0…{half} Hz")
        require(self.n_mfcc <= self.n_mels, "n_mfcc", self.n_mfcc, f"at most n_mels={self.n_mels}")

    @property
    def shape(self) -> tuple[int, int]:
        """(frames, coefficients) of one map."""
        return self.window // self.hop + 1, self.n_mfcc

    @property
    def margin(self) -> int:
        """Number of frames at each end of a map that reach beyond it and need the mirror."""
        return -(-self.n_fft // 2 // self.hop)

    @cached_property
    def taper(self) -> Tensor:
        """Hann window `[n_fft]`."""
        return torch.hann_window(self.n_fft)

    @cached_property
    def filters(self) -> Tensor:
        """Triangular mel filters `[n_fft // 2 + 1, n_mels]` (HTK scale, height 1)."""
        fbanks = torchaudio_functional().melscale_fbanks
        return fbanks(self.n_fft // 2 + 1, self.low, self.high, self.n_mels, self.rate)

    @cached_property
    def dct(self) -> Tensor:
        """`[n_mels, n_mfcc]`, orthonormal: for n_mfcc = n_mels its transpose undoes it."""
        return torchaudio_functional().create_dct(self.n_mfcc, self.n_mels, "ortho")

    def stages(self, clip: Tensor) -> Stages:
        """Every stage for a clip `[n]` that is mirrored at its ends; n must exceed `n_fft // 2`."""
        check_audio(clip)
        half = self.n_fft // 2
        require(len(clip) > half, "length of the clip", len(clip), f"{half + 1} samples or more")
        padded = pad(clip.view(1, 1, -1), (half, half), mode="reflect").flatten()
        parts = zip(*self._blocks(padded.unfold(0, self.n_fft, self.hop)), strict=True)
        return Stages(*(torch.cat(stage)[: len(clip) // self.hop + 1] for stage in parts))

    def __call__(self, clip: Tensor) -> Tensor:
        """Map `[F, n_mfcc]` of a clip `[n]`; F = 101 for one second."""
        return self.stages(clip).mfcc

    def num_windows(self, samples: int) -> int:
        """Number of whole windows in a stream of this many samples."""
        return max(0, (samples - self.window) // self.step + 1)

    def windows(self, stream: Tensor) -> Tensor:
        """Maps `[T, F, n_mfcc]` of the windows of a stream `[n]`, one every `step` samples.

        Each equals `self(window)` bit by bit, but frames that windows share are computed once.
        """
        inner, edges = self.shared_frames(stream)
        return assemble(inner.unsqueeze(0), edges.unsqueeze(0), self)[0]

    def shared_frames(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        """The frames behind `windows`, once: inner `[M, n_mfcc]`, edges `[T, 2 · margin, n_mfcc]`.

        Inner ones lie in the stream, from sample `margin · hop` on; edges are mirrored at a window.
        """
        count, margin = self.num_windows(len(stream)), self.margin
        check_audio(stream)
        enough = f"{self.window} samples or more, one window"
        require(count > 0, "length of the stream", len(stream), enough)
        used = (count - 1) * self.step + self.window
        first = margin * self.hop - self.n_fft // 2
        inner = self._rows(stream[first:used].unfold(0, self.n_fft, self.hop))
        windows = stream[:used].unfold(0, self.window, self.step)
        return inner, self._rows(self._edge_frames(windows)).view(count, 2 * margin, -1)

    def _edge_frames(self, windows: Tensor) -> Tensor:
        """Mirrored frames `[T · 2 · margin, n_fft]` at both ends of windows `[T, window]`."""
        half = self.n_fft // 2
        span = (self.margin - 1) * self.hop + half + 1  # samples that the frames of one end touch
        head = pad(windows[:, :span], (half, 0), mode="reflect")
        tail = pad(windows[:, -span:], (0, half), mode="reflect")[:, 1:]
        ends = [end.unfold(1, self.n_fft, self.hop) for end in (head, tail)]
        return torch.cat(ends, 1).flatten(0, 1)

    def _blocks(self, frames: Tensor) -> Iterator[Stages]:
        """The stages of frames `[F, n_fft]` in blocks of one height, the last one padded."""
        for rows in frames.split(_BLOCK):
            if len(rows) < _BLOCK:
                rows = torch.cat([rows, rows.new_zeros(_BLOCK - len(rows), self.n_fft)])
            tapered = rows * self.taper
            spectrum = torch.fft.rfft(tapered)
            power = spectrum.real.square() + spectrum.imag.square()
            mel = power @ self.filters
            log_mel = torch.log(mel + _FLOOR)
            yield Stages(tapered, power, mel, log_mel, log_mel @ self.dct)

    def _rows(self, frames: Tensor) -> Tensor:
        """MFCC `[F, n_mfcc]` of frames `[F, n_fft]`."""
        return torch.cat([stages.mfcc for stages in self._blocks(frames)])[: len(frames)]


def assemble(inner: Tensor, edges: Tensor, mfcc: MFCC) -> Tensor:
    """Maps `[B, T, F, n_mfcc]` from shared frames: inner `[B, M, n_mfcc]`, edges `[B, T, …]`."""
    count, margin = edges.shape[1], mfcc.margin
    size, step = mfcc.shape[0] - 2 * margin, mfcc.step // mfcc.hop
    index = torch.arange(count).unsqueeze(1) * step + torch.arange(size)
    middle = inner[:, index.to(inner.device)]
    return torch.cat([edges[:, :, :margin], middle, edges[:, :, margin:]], 2)


class StreamingMFCC:
    """The maps of a stream that arrives in packets of any size; bit-equal to `MFCC.windows`."""

    def __init__(self, mfcc: MFCC | None = None):
        self.mfcc = mfcc or MFCC()
        self.reset()

    def reset(self) -> None:
        """Forget the stream so far; needed between files."""
        self.audio = torch.zeros(0)  # from sample `start` on
        self.start = self.end = 0
        self.waiting: list[Tensor] = []  # packets behind `audio`, joined when a map is due
        self.inner = torch.zeros(0, self.mfcc.n_mfcc)  # frames of the current window
        self.next_frame = self.mfcc.margin
        self.next_window = 0

    def push(self, packet: Tensor) -> list[Tensor]:
        """The maps `[F, n_mfcc]` that samples `[n]` complete, often none."""
        check_audio(packet)  # a packet that is refused leaves the stream as it was
        return self.take(packet.clone())  # the caller may write the next packet into its place

    def take(self, packet: Tensor) -> list[Tensor]:
        """`push` of samples that were checked, and that stay as they are until a map is due."""
        self.waiting.append(packet)
        self.end += len(packet)
        due = max(0, self.mfcc.num_windows(self.end - self.next_window))
        return [self._map() for _ in range(due)]

    def _map(self) -> Tensor:
        m = self.mfcc
        self.audio, self.waiting = torch.cat([self.audio, *self.waiting]), []
        begin, end = self.next_window, self.next_window + m.window
        last = end // m.hop - m.margin  # due frames lie within the window: none is mirrored
        first_sample = self.next_frame * m.hop - m.n_fft // 2 - self.start
        due = self.audio[first_sample : last * m.hop + m.n_fft // 2 - self.start]
        window = self.audio[begin - self.start : end - self.start]
        # Frames that are due and mirrored ones together: in a stream they fit into one block.
        frames = torch.cat([due.unfold(0, m.n_fft, m.hop), m._edge_frames(window.unsqueeze(0))])
        fresh, head, tail = m._rows(frames).split([len(frames) - 2 * m.margin, m.margin, m.margin])
        self.inner = torch.cat([self.inner, fresh])[-(m.shape[0] - 2 * m.margin) :]
        self.next_frame = last + 1
        self.next_window += m.step
        keep = min(self.next_window, self.next_frame * m.hop - m.n_fft // 2)
        self.audio, self.start = self.audio[keep - self.start :], keep
        return torch.cat([head, self.inner, tail])
