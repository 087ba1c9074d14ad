"""The JSON lines of `compare.py` as the Markdown table of the model cards.

Per scan and part of its measurements, each method beside the others: main direction in all white matter, where the
reference finds one fibre and where it finds more (median, degrees), share of the reference's peaks found within 20
degrees and share of false peaks in crossings, number of fibres (exact), tissue (same largest fraction).

Run: python -m benchmarks.real.table LINES.jsonl [...]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

COLUMNS = {
    "white matter, °": ("angle_deg", "{:.1f}"),
    "one fibre, °": ("single_deg", "{:.1f}"),
    "crossing, °": ("crossing_deg", "{:.1f}"),
    "peaks found": ("recall_20", "{:.2f}"),
    "false peaks": ("false_20", "{:.2f}"),
    "number": ("number", "{:.2f}"),
    "tissue": ("tissue", "{:.2f}"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", nargs="+", type=Path)
    options = parser.parse_args()
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for path in options.lines:  # a later line about the same replaces an earlier one
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if "refused" in line:
                continue
            found[line["scan"], line["part"], line["method"]] = line
    print("\n".join(table(found)))


def table(found: dict[tuple[str, str, str], dict[str, Any]]) -> list[str]:
    rows = [f"| scan | measurements | method | {' | '.join(COLUMNS)} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for (scan, part, method), line in sorted(found.items(), key=lambda pair: pair[0][:2]):
        if "single_deg" not in line and "tissue" not in line:
            continue
        cells = [form.format(line[key]) if key in line else "–" for key, form in COLUMNS.values()]
        rows.append(f"| {scan} | {part} | {method} | {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
