"""Tables of the sources, copied into `data/reference/<name>.csv`."""

from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).resolve().parents[2] / "data" / "reference"


def names() -> tuple[str, ...]:
    """All tables, such as `table_3_1` and `s_long`."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.csv")))


def load(name: str) -> pd.DataFrame:
    """One table; `.attrs["source"]` says where it was printed, `.attrs["notes"]` has remarks.

    `classes` of `s_long` come as tuples.
    """
    path = FOLDER / f"{name}.csv"
    if not path.is_file():
        raise ValueError(f"no reference table {name!r}; choose from {', '.join(names())}")
    with open(path, encoding="utf-8") as file:
        comments = []
        while (line := file.readline()).startswith("#"):
            comments.append(line.lstrip("#").strip())
    frame = pd.read_csv(path, skiprows=len(comments))
    if "classes" in frame:
        frame["classes"] = [tuple(cell.split("|")) for cell in frame["classes"]]
    frame.attrs["source"] = comments[0].removeprefix("source:").strip()
    frame.attrs["notes"] = comments[1:]
    return frame
