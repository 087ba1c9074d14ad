"""The front page of a study's predictions: which scans, what became of them, and the pages with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from dmri_monai.io.writing import replacing

__all__ = ["IndexRow", "write_index"]


@dataclass(frozen=True)
class IndexRow:
    """What became of a scan: tasks, status, what was noticed; `page`: its subject's report beside the index."""

    scan: str
    task: str
    status: str
    messages: tuple[str, ...]
    page: str | None

    @property
    def link(self) -> str | None:
        """`page` as a relative address."""
        return None if self.page is None else quote(f"./{self.page}")


def write_index(path: Path, rows: Sequence[IndexRow], *, title: str) -> None:
    """Write the page to `path`; it needs nothing but itself and the pages it links to."""
    from jinja2 import Environment
    from markupsafe import Markup

    assets = files("dmri_monai.report") / "assets"
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((assets / "index.html").read_text(encoding="utf-8"))
    style = Markup((assets / "style.css").read_text(encoding="utf-8"))
    failed = sum(row.status == "failed" for row in rows)
    html = template.render(title=title, rows=rows, failed=failed, style=style)
    with replacing(path) as (temporary,):
        temporary.write_text(html, encoding="utf-8", errors="xmlcharrefreplace")
