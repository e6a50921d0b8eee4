"""Data sets as tensors: embedded ones that need no download, and real ones from a data root."""

# ruff: noqa: F401

from nas_core.data import reference
from nas_core.data.dataset import (
    CorruptData,
    DataNotFound,
    Dataset,
    average_pool,
    stratified_order,
    zero_pad,
)
from nas_core.data.real import Images, data_root, read_images
from nas_core.data.registry import FILES, available, fetch, load, states
