"""The page of the results."""

from __future__ import annotations

from pathlib import Path

from benchmarks.experiments import classical, generalisation, lesions, page, pretraining
from benchmarks.experiments.sizes import SIZES

EXPERIMENTS = {m.NAME: m for m in (lesions, pretraining, generalisation, classical)}
DOCS = Path(__file__).parents[2] / "docs"


def test_page_says_what_was_not_run():
    text = page.page({size: {name: [] for name in EXPERIMENTS} for size in SIZES}, DOCS / "results")
    assert text.count("**Not run at this size: lesion segmentation, pretraining") == len(page.PUBLISHED)


def test_results_page_is_the_one_of_the_lines():
    assert page.page(page.read_lines(DOCS / "results"), DOCS / "results") == (DOCS / "results.md").read_text(
        encoding="utf-8"
    )
