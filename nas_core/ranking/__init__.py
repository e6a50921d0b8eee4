"""Can a super-network rank? Metrics, spaces and tables of known truth, super-networks, searches."""

# ruff: noqa: F401 — these names are the public door of the package

from nas_core.ranking import spaces, tables
from nas_core.ranking.evaluation import enas, run_searches, scorer, summarize
from nas_core.ranking.metrics import (
    beside_size,
    final_accuracy,
    kendall,
    p_above_random,
    sparse_kendall,
    sparse_spearman,
    spearman,
    welch,
)
from nas_core.ranking.supernet import (
    SuperNetConfig,
    best_of_random,
    evolve,
    fair,
    shared_scores,
    single_path,
    train_supernet,
)
