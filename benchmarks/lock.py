"""Write `requirements.lock`: the exact versions of this environment, as the outputs were made with.

Run `python benchmarks/lock.py` in the environment that the gate has passed in. The file names what
`pip install -e ".[test]"` needs, directly or through another package, and nothing else that
happens to be installed.
"""

from __future__ import annotations

import platform
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
HEADER = """\
# Versions that the committed outputs were made and tested with, on Python {python}; written by
# `python benchmarks/lock.py`. Install them with
#
#     pip install -r requirements.lock && pip install --no-deps -e .
#
# torch is named without its build, so that an index of CPU builds serves too; what a GPU build
# needs besides (CUDA libraries, triton) follows from the version of torch.
"""
_GPU = ("nvidia-", "cuda-", "triton")


def closure(requirements: list[str]) -> dict[str, str]:
    """Name → installed version of the requirements and of all that they need here."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()  # (name, extra): an extra of a known package is new work
    todo = [Requirement(text) for text in requirements]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name.startswith(_GPU):
            continue
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            package = metadata.distribution(name)
            found[name] = package.version.partition("+")[0]  # "+cpu" names a build
            for text in package.requires or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    todo.append(needed)
    return found


def lock() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    pins = [f"{name}=={version}" for name, version in sorted(closure(wanted).items())]
    header = HEADER.format(python=platform.python_version().rpartition(".")[0])
    return header + "\n".join(pins) + "\n"


if __name__ == "__main__":
    (ROOT / "requirements.lock").write_text(lock(), encoding="utf-8")
