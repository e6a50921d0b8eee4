"""List the recorded results of larger runs: what, from which command, where it ran."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("chapter", nargs="?", metavar="CHAPTER", help="number or name")


def main(args: argparse.Namespace) -> int:
    from nas_core.workbook.results import read_results

    records = read_results(args.chapter)
    for record in records:
        seeds = ", ".join(map(str, record["seeds"])) or "none named"
        print(f"{record['chapter']} / {record['name']}: {len(record['rows'])} rows")
        print(f"  {record['command']}")
        print(f"  seeds {seeds} · {record['device'] or 'device not named'} · {record['recorded']}")
    if not records:
        print("no results are recorded")
    return 0
