"""The page in a real browser; skipped where no Chromium is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dmri_monai.artifacts.engine import corrupt
from dmri_monai.io import write_dwi
from dmri_monai.report import Case, write_report
from dmri_monai.report.colour import OKABE_ITO
from dmri_monai.report.glyphs import DARK
from tests.conftest import STANDARD_AFFINES
from tests.report.scenes import CLASSES, blob_at, fibres_along

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs chromium on the PATH"),
]
# moves the first slider to its end as a user would, then writes down what the page shows
PROBE = """<script>
const slider = document.querySelector("input.scroll");
slider.value = slider.max;
slider.dispatchEvent(new Event("input"));
const picture = slider.closest(".plane").querySelector("img");
const window_ = picture.parentElement.getBoundingClientRect(), box = picture.getBoundingClientRect();
const seen = JSON.stringify({
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  hidden: slider.hidden,
  text: slider.closest(".plane").querySelector("output").textContent,
  gap: Math.abs(box.bottom - window_.bottom),
  slices: box.height / window_.height,
  loaded: [...document.images].every((i) => i.complete && i.naturalWidth > 0),
  panels: Math.min(...[...document.querySelectorAll(".window")].map((w) => w.getBoundingClientRect().width)),
  sticks: Math.min(...[...document.querySelectorAll(".sticks .window")].map((w) => w.getBoundingClientRect().width)),
  table: document.querySelectorAll(".case .wide tbody tr").length,
  width: innerWidth,
  small: [...document.querySelectorAll("input")].filter((i) => i.getBoundingClientRect().height < 24).length,
}).replaceAll('"', "'");
document.body.dataset.probe = seen;
parent.postMessage(seen, "*");
</script>"""
# a frame of a phone's width: the browser's own window is never narrower than 500 pixels
FRAME = """<!DOCTYPE html><body style="margin:0">
<iframe src="{name}" style="border:0;width:{width}px;height:{height}px"></iframe>
<script>addEventListener("message", (event) => {{ document.body.dataset.probe = event.data; }});</script></body>"""
PHONE = 390
SETTLED = ("--virtual-time-budget=5000",)  # milliseconds of the page's own clock, at most


def browse(page: Path, profile: Path, *options: str) -> str:
    """What headless Chromium prints; the sandbox needs rights a container does not give."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *options]
    return subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    affine = STANDARD_AFFINES["oblique-left-iso2"]
    image, gradients = fibres_along((1, 0, 0), affine)
    folder = tmp_path_factory.mktemp("browser")
    scan = folder / "sub-01_dwi.nii.gz"
    write_dwi(scan, image, gradients)
    table = {"bvals": gradients.bvals, "bvecs_voxel": gradients.in_voxel_frame(affine)}
    _, record = corrupt(image, **table, affine=affine, preset="all", seed=1)
    scan.with_name("sub-01_dwi.json").write_text(
        json.dumps({"Phantom": {"Artifacts": record}}), encoding="utf-8"
    )
    labels = blob_at((5, 0, 0), affine)
    maps = {"Uncertainty": torch.rand(labels.shape)}
    case = Case("sub-01 with a rather long name", scan, None, labels, labels, CLASSES, maps=maps)
    own = {"title": "Report", "provenance": {"hash": "0123456789abcdef" * 8}}
    write_report(folder / "twice.html", [case, replace(case, name="sub-01 again")], **own)
    return write_report(folder / "report.html", [case], **own)


def framed(page: Path, width: int, height: int = 900) -> Path:
    """A page that shows `page` in a frame of that size."""
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(name=page.name, width=width, height=height), encoding="utf-8")
    return frame


def probe(page: Path, tmp_path: Path, width: int) -> dict[str, str]:
    probed = tmp_path / "probed.html"
    probed.write_text(
        page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8"
    )
    dom = browse(
        framed(probed, width), tmp_path / "profile", "--window-size=1300,900", *SETTLED, "--dump-dom"
    )
    found = re.search(r'data-probe="\{([^"]*)\}"', dom)
    assert found, "the page's scripts did not run"
    seen = dict(re.findall(r"'(\w+)':('[^']*'|[^,]+)", found[1]))
    assert float(seen["width"]) == width
    return seen


@pytest.mark.parametrize("width", [320, PHONE, 768, 1280], ids=["small-phone", "phone", "tablet", "desk"])
def test_page_shows_all_pictures_without_sideways_scrolling(page, tmp_path, width):
    seen = probe(page, tmp_path, width)
    assert seen["overflow"] == "0"
    assert seen["loaded"] == "true"
    assert seen["small"] == "0"


def test_pictures_that_are_stored_once_are_shown_in_both_cases(page, tmp_path):
    twice = page.with_name("twice.html")
    assert "data-same" in twice.read_text(encoding="utf-8")
    assert probe(twice, tmp_path, 1280)["loaded"] == "true"
    cut = tmp_path / "cut.html"
    cut.write_text(
        twice.read_text(encoding="utf-8").replace("image.src =", "image.title ="), encoding="utf-8"
    )
    assert probe(cut, tmp_path, 1280)["loaded"] == "false"


def test_pictures_are_large_enough_on_a_phone_and_sticks_take_its_width(page, tmp_path):
    seen = probe(page, tmp_path, PHONE)
    assert float(seen["panels"]) > 140
    assert float(seen["sticks"]) > 300


def test_record_of_artifacts_is_a_table_in_its_case(page, tmp_path):
    rows = re.findall(r"<tr><td>([^<]+)</td><td>\d+ of 33</td><td>\d+ of", page.read_text(encoding="utf-8"))
    assert len(rows) > 3
    assert int(probe(page, tmp_path, 1280)["table"]) == len(rows)


def test_the_slider_at_its_end_shows_the_last_slice(page, tmp_path):
    seen = probe(page, tmp_path, 1280)
    slices = re.search(r'data-slices="([\d,]+)" data-count="(\d+)"', page.read_text(encoding="utf-8"))
    shown = slices[1].split(",")
    assert seen["hidden"] == "false"
    assert seen["text"] == f"'slice {int(shown[-1]) + 1} of {slices[2]}'"
    assert float(seen["gap"]) < 0.5
    assert float(seen["slices"]) == pytest.approx(len(shown), rel=1e-3)


@pytest.mark.parametrize("width", [PHONE, 1280], ids=["phone", "desk"])
@pytest.mark.parametrize("scripts", [True, False], ids=["with-scripts", "without-scripts"])
def test_screenshot_shows_red_fibres_the_outline_and_sticks(page, tmp_path, scripts, width):
    shown = tmp_path / "shown.html"
    text = page.read_text(encoding="utf-8")
    shown.write_text(
        text if scripts else re.sub(r"<script>.*</script>", "", text, flags=re.S), encoding="utf-8"
    )
    shot = tmp_path / "shot.png"
    frame = framed(shown, width, 2400)
    options = ("--window-size=1300,2400", *SETTLED, "--hide-scrollbars", f"--screenshot={shot}")
    browse(frame, tmp_path / "profile", *options)
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1:].max(axis=-1) < 40)
    outline = np.abs(pixels - np.array(OKABE_ITO[0])).max(axis=-1) < 12
    sticks = np.abs(pixels - [255, DARK, DARK]).max(axis=-1) < 25
    assert red.sum() > 2000
    assert outline.sum() > 200
    assert sticks.sum() > 500
