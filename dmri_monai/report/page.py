"""The report: one HTML file that needs nothing but itself."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from dmri_monai.io.writing import replacing
from dmri_monai.report.case import Case
from dmri_monai.report.panels import render_case
from dmri_monai.report.slices import Convention

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["write_report"]


def write_report(
    path_html: str | os.PathLike[str],
    cases: Iterable[Case],
    *,
    title: str,
    tables: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
    provenance: Mapping[str, object] | None = None,
    convention: Convention = "radiological",
    max_slices: int = 24,
) -> Path:
    """Write the report of `cases` to `path_html` (made aside, then renamed) and return its path.

    The file embeds all pictures, styles and scripts and forbids itself any network access. tables: heading ->
    rows, each a dictionary of column -> value.  provenance: what made the results (versions, hashes).
    convention: "radiological" shows the patient's left on the right. Raises ValueError or TypeError for a
    case whose volumes do not lie on one grid.
    """
    from markupsafe import Markup

    rendered = [render_case(c, max_slices=max_slices, convention=convention) for c in cases]
    summary = [{"case": r.name, **r.metrics} for r in rendered if r.metrics]
    html = _template().render(
        title=title,
        cases=rendered,
        tables={**({"Metrics": summary} if summary else {}), **(tables or {})},
        provenance=dict(provenance or {}),
        convention=convention,
        style=Markup(_asset("style.css")),
        script=Markup(_asset("pictures.js")),
    )
    target = Path(path_html)
    with replacing(target) as (temporary,):
        temporary.write_text(_each_picture_once(html), encoding="utf-8", errors="xmlcharrefreplace")
    return target


def _each_picture_once(html: str) -> str:
    """`html` in which a picture that is there already points to the first: several tasks show the same b0."""
    known: dict[str, int] = {}

    def once(match: re.Match[str]) -> str:
        if (number := known.get(match[1])) is not None:
            return f'data-same="{number}"'
        known[match[1]] = len(known)
        return f'{match[0]} data-picture="{known[match[1]]}"'

    return re.sub(r'src="(data:image/[^"]+)"', once, html)


@cache
def _template() -> Template:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"value": _value, "columns": _columns}
    return environment.from_string(_asset("page.html"))


def _asset(name: str) -> str:
    return (files("dmri_monai.report") / "assets" / name).read_text(encoding="utf-8")


def _columns(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Union of the rows' keys, in order of appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _value(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    if isinstance(value, float):
        return f"{value:.3f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.3g}"
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, default=str)
    return str(value)
