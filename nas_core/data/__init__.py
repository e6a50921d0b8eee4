"""Data sets as tensors: embedded ones that need no download, and real ones from a data root."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nas_core.data.places import FILES, data_root, states, table_states

if TYPE_CHECKING:
    from nas_core.data import reference
    from nas_core.data.dataset import (
        CorruptData,
        DataNotFound,
        Dataset,
        average_pool,
        stratified_order,
        zero_pad,
    )
    from nas_core.data.real import Images, read_images
    from nas_core.data.registry import available, fetch, load

_HOME = {  # loaded when first used: `nas-workbook data list` does not wait for PyTorch
    "CorruptData": "dataset", "DataNotFound": "dataset", "Dataset": "dataset",
    "average_pool": "dataset", "stratified_order": "dataset", "zero_pad": "dataset",
    "Images": "real", "read_images": "real",
    "available": "registry", "fetch": "registry", "load": "registry",
}  # fmt: skip
__all__ = [
    "FILES", "CorruptData", "DataNotFound", "Dataset", "Images", "available", "average_pool",
    "data_root", "fetch", "load", "read_images", "reference", "states", "stratified_order",
    "table_states", "zero_pad",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "reference":
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
