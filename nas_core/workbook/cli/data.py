"""List the data sets and whether they are here, or fetch one into the data root."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", help="data root (default: $NAS_DATA, else the book's data/)")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="names and states")
    fetch = actions.add_parser("fetch", help="download one data set")
    fetch.add_argument("name", metavar="NAME")


def main(args: argparse.Namespace) -> int:
    from nas_core import data

    if args.action == "fetch":
        print(f"{args.name} is in {data.fetch(args.name, root=args.root)}")
        return 0
    root = data.data_root(args.root)
    print(f"data root: {root}")
    states = {name: _state(name, args.root) for name in data.available()}
    for name, files in data.FILES.items():
        here = "not here: nas-workbook data fetch " + name if files.missing(root) else "here"
        states[name] = f"{here} (for chapters {files.chapters})"
    width = max(map(len, states))
    for name, state in states.items():
        print(f"{name:{width}}  {state}")
    return 0


def _state(name: str, root: str | None) -> str:
    from nas_core import data

    try:
        found = data.load(name, root=root)
    except data.DataNotFound:
        return f"not here: nas-workbook data fetch {name}"
    except data.CorruptData as error:
        return f"damaged: {error}"
    sizes = " / ".join(f"{len(part):,}" for part in (found.train, found.val, found.test))
    shape = "×".join(map(str, found.input_shape))
    return f"here: {sizes} examples (train / validation / test) of {shape}"
