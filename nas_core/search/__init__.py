"""Searching a space: budgeted super-networks, strategies on tables, sweeps, model selection."""

# ruff: noqa: F401 — these names are the public door of the package

from nas_core.search import strategies
from nas_core.search.budgeted import BudgetConfig, budgeted, per_example_loss
from nas_core.search.exact import Learned, learn_distribution
from nas_core.search.pareto import hypervolume, pareto_front
from nas_core.search.reinforce import overspend, policy_loss, reward_to_go
from nas_core.search.run import Run, SearchWarning
from nas_core.search.space_profile import SpaceProfile, all_masks, count_paths, profile_space
from nas_core.search.sweeps import SweepError, grid, map_trials, stored, sweep
from nas_core.search.tabular import CellTable, load_nasbench201
from nas_core.search.trial import derive, shortlist
from nas_core.training import MovingAverage
