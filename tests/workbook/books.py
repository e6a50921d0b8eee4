"""Throw-away books: a folder with meta.yaml and small notebooks."""

import shutil
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

CHECKS = Path(__file__).resolve().parents[2] / "notebooks" / "checks" / "__init__.py"
PARAMETERS = 'PROFILE = "smoke"\nSEED = 0\nDEVICE = "cpu"\nSTEPS = 3'


def code(source: str, *tags: str, **metadata: Any):
    return new_code_cell(source, metadata={**({"tags": list(tags)} if tags else {}), **metadata})


def text(source: str, *tags: str):
    return new_markdown_cell(source, metadata={"tags": list(tags)} if tags else {})


def make_book(root: Path, chapters: dict[str, list], **entries: dict[str, Any]) -> Path:
    """A book whose chapters have these cells after the parameters; `entries` change its meta."""
    folder = root / "notebooks"
    (folder / "checks").mkdir(parents=True)
    shutil.copy(CHECKS, folder / "checks")
    meta: dict[str, Any] = {
        "title": "A small book",
        "parts": [{"id": "I", "title": "The only part"}],
        "chapters": {},
    }
    for name, cells in chapters.items():
        meta["chapters"][name] = {
            "title": name,
            "part": "I",
            "question": "Is it?",
            "status": "ready",
            "profiles": {"smoke": {"steps": 3, "rate": 0.5, "deep": False}, "study": {"steps": 9}},
            **entries.get(name, {}),
        }
        notebook = new_notebook(cells=[text(f"# {name}"), code(PARAMETERS, "parameters"), *cells])
        nbformat.write(notebook, str(folder / f"{name}.ipynb"))
    (folder / "meta.yaml").write_text(yaml.safe_dump(meta, sort_keys=False))
    return root
