"""Sound: features, files, words, streams with words in them, and the detection of words."""

# ruff: noqa: F401

from nas_core.audio.corpus import KEYWORDS, Corpus, load_speech_commands, split_of, word_extent
from nas_core.audio.detection import (
    KeywordDetector,
    Smoothing,
    StreamScore,
    detect,
    score,
    threshold_sweep,
)
from nas_core.audio.features import MFCC, StreamingMFCC
from nas_core.audio.files import AudioFileError, read_all, read_audio
from nas_core.audio.streams import (
    EvaluationStream,
    Mixing,
    Spoken,
    StreamSet,
    evaluation_stream,
    make_sequence,
    make_streams,
    window_labels,
    word_share,
    write_truth,
)
from nas_core.audio.synthesis import Speaker, say, synthetic_corpus
