"""The page of the results: what it claims, and that it is the one of its lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.experiments import claims, page
from benchmarks.experiments.claims import NO_CLAIM, Evidence, summary_lines
from benchmarks.experiments.figures import FIGURES
from benchmarks.experiments.sizes import SIZES
from tests.experiments.examples import line

DOCS = Path(__file__).parents[2] / "docs"
HEADS = np.linspace(-0.05, 0.05, 8)


def lesion(
    method: str, upright: float, turned: float, seed: int, network: bool = True, varied: bool = True
) -> dict:
    """A line with these mean APs over eight heads, which differ from method to method."""
    noise = np.random.default_rng(len(method)).normal(0, 0.01, 8) if varied else 0.0
    tests = {
        name: {
            column: (mean + noise + HEADS * (1 + 0.1 * seed)).tolist()
            for column in ("average_precision", "roc_auc", "dice")
        }
        for name, mean in (("upright", upright), ("turned", turned))
    }
    more = {
        "recipe": {}, "curve": [[10, 1.0, upright], [20, 0.9, upright]], "n_parameters": 100,
        "train_seconds": 3.0,
    }  # fmt: skip
    labels = {"study": "data", "method": method, "heads": 40, "task": "lesion"}
    return {
        "key": f"{method}{seed}", "labels": labels, "seed": seed, "learners": 40, "task": "lesion", "method": method,
        "tests": tests, "wall_seconds": 1.0, "device": "cpu", **(more if network else {}),
    }  # fmt: skip


def evidence_with(plain: float) -> dict[str, list[dict]]:
    lines = [lesion("regression", 0.2, 0.2, 0, network=False)]
    for seed in range(2):
        lines.append(lesion("equivariant", 0.5, 0.45 + 0.01 * seed, seed))
        lines.append(lesion("plain", plain, plain - 0.02, seed))
    return {name: [] for name in page.NAMES} | {"lesions": lines}


def test_rival_that_learned_is_compared_and_one_that_did_not_is_named_once():
    strong, weak = (Evidence(evidence_with(plain)) for plain in (0.3, 0.1))
    assert (strong.learned("lesion", "plain"), weak.learned("lesion", "plain")) == (True, False)
    assert strong.comparisons["lesions", 40, "turned", "equivariant", "plain"].mean == pytest.approx(
        0.175, abs=0.01
    )
    told = "\n".join(summary_lines(strong))
    assert "against `plain`, better" in told
    assert "equivariant, turned lesions" in told
    silent = "\n".join(summary_lines(weak))
    assert "Did not learn, so no claim is made against: `plain` 0.10" in silent
    assert "against `plain`," not in silent
    tables = "".join(table for _, table in page._lesion_tables(weak))
    assert tables.count(f"plain, 40 heads: {NO_CLAIM}") == 1
    assert "| equivariant | plain |" not in tables


def test_float32_is_compared_on_the_seeds_that_have_both():
    lines = evidence_with(0.3)
    exact = lesion("plain", 0.4, 0.35, 1)
    exact["labels"] = {"study": "float32", "method": "plain"}
    lines["lesions"].append(exact)
    told = "\n".join(summary_lines(Evidence(lines)))
    assert "`plain` 0.30 to 0.40 upright, 0.28 to 0.35 turned (1 seed)" in told


def test_equal_heads_differences_have_no_test():
    """All heads differ alike, so nothing can be said of chance."""
    arms = [
        lesion(m, value, value, s, varied=False)
        for m, value in (("equivariant", 0.5), ("plain", 0.3))
        for s in (0, 1)
    ]
    found = Evidence({name: [] for name in page.NAMES} | {"lesions": arms}).comparisons
    assert not found["lesions", 40, "upright", "equivariant", "plain"].better


def test_page_says_what_was_not_run_and_makes_no_figure_of_it(tmp_path):
    nothing = {size: {name: [] for name in page.NAMES} for size in SIZES}
    text = page.page(nothing)
    assert text.count("Not run yet") == len(page.PUBLISHED)
    assert not any(page._shown(name, nothing["cpu"]) for name in FIGURES)


def test_parts_that_were_not_run_are_named():
    run = line(test="as trained", column="dice_WM", task="tissue", method="plain")
    (told,) = claims._missing(Evidence({name: [] for name in page.NAMES} | {"generalisation": [run]}))
    assert "other protocols" not in told
    assert all(part in told for part in ("; crossings; orientation; the architecture `any`", "on real scans"))


def test_summary_is_made_from_the_lines():
    texts = {
        page.page({**{s: {n: [] for n in page.NAMES} for s in SIZES}, "cpu": evidence_with(p)})
        for p in (0.3, 0.31)
    }
    assert len(texts) == 2


def test_results_page_is_the_one_of_the_lines():
    assert page.page(page.read_lines(DOCS / "results")) == (DOCS / "results.md").read_text(encoding="utf-8")


def test_every_figure_of_the_page_is_there():
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    named = [part.split(")")[0] for part in text.split("](results/")[1:]]
    assert all((DOCS / "results" / name).stat().st_size > 5000 for name in named)
