"""The page in a real browser; skipped where no Chromium is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmri_monai.report import Case, write_report
from dmri_monai.report.colour import OKABE_ITO
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
document.body.dataset.probe = JSON.stringify({
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  hidden: slider.hidden,
  text: slider.closest(".plane").querySelector("output").textContent,
  gap: Math.abs(box.bottom - window_.bottom),
  slices: box.height / window_.height,
  loaded: [...document.images].every((i) => i.complete && i.naturalWidth > 0),
  small: [...document.querySelectorAll("input")].filter((i) => i.getBoundingClientRect().height < 24).length,
}).replaceAll('"', "'");
</script>"""


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
    labels = blob_at((5, 0, 0), affine)
    case = Case("sub-01 with a rather long name", image, gradients, labels, labels, class_names=CLASSES)
    folder = tmp_path_factory.mktemp("browser")
    return write_report(
        folder / "report.html", [case], title="Report", provenance={"hash": "0123456789abcdef" * 8}
    )


def probe(page: Path, tmp_path: Path, width: int) -> dict[str, str]:
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    dom = browse(probed, tmp_path / "profile", f"--window-size={width},900", "--dump-dom")
    found = re.search(r'data-probe="\{([^"]*)\}"', dom)
    assert found, "the page's scripts did not run"
    return dict(re.findall(r"'(\w+)':('[^']*'|[^,]+)", found[1]))


@pytest.mark.parametrize("width", [500, 1280], ids=["narrow", "desk"])
def test_page_shows_all_pictures_without_sideways_scrolling(page, tmp_path, width):
    seen = probe(page, tmp_path, width)
    assert seen["overflow"] == "0"
    assert seen["loaded"] == "true"
    assert seen["small"] == "0"


def test_the_slider_at_its_end_shows_the_last_slice(page, tmp_path):
    seen = probe(page, tmp_path, 1280)
    slices = re.search(r'data-slices="([\d,]+)" data-count="(\d+)"', page.read_text())
    shown = slices[1].split(",")
    assert seen["hidden"] == "false"
    assert seen["text"] == f"'slice {int(shown[-1]) + 1} of {slices[2]}'"
    assert float(seen["gap"]) < 0.5
    assert float(seen["slices"]) == pytest.approx(len(shown), rel=1e-3)


@pytest.mark.parametrize("scripts", [True, False], ids=["with-scripts", "without-scripts"])
def test_screenshot_shows_red_fibres_and_the_outline(page, tmp_path, scripts):
    shown = tmp_path / "shown.html"
    text = page.read_text()
    shown.write_text(text if scripts else re.sub(r"<script>.*</script>", "", text, flags=re.S))
    shot = tmp_path / "shot.png"
    browse(
        shown, tmp_path / "profile", "--window-size=1000,1400", "--hide-scrollbars", f"--screenshot={shot}"
    )
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1:].max(axis=-1) < 40)
    outline = np.abs(pixels - np.array(OKABE_ITO[0])).max(axis=-1) < 12
    assert red.sum() > 2000
    assert outline.sum() > 200
