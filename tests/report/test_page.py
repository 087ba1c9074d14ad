"""The page: self-contained, accessible, true to its input, whole or not there."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from dmri_monai.io import write_dwi
from dmri_monai.report import Case, write_report
from dmri_monai.report.colour import OKABE_ITO, class_colours, contrast, hex_colour
from dmri_monai.report.slices import label_uri
from dmri_monai.report.sphere import COLOURS, gradient_sphere
from tests.check.fibres import table
from tests.conftest import STANDARD_AFFINES
from tests.report.scenes import CLASSES, blob_at, fibres_along, image_sources

AFFINE = STANDARD_AFFINES["oblique-left-2x2x2.5"]


@pytest.fixture(scope="module")
def case() -> Case:
    image, gradients = fibres_along((1, 0, 0), AFFINE)
    labels = [blob_at((shift, 0, 0), AFFINE) + 2 * blob_at((0, -8, 0), AFFINE) for shift in (5, 7)]
    return Case(
        "sub-01",
        image,
        gradients,
        *labels,
        class_names=CLASSES,
        metrics={"Dice WM": 0.81, "HD": float("nan")},
    )


@pytest.fixture(scope="module")
def page(case, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    written = write_report(
        path,
        [case],
        title="Tissue",
        tables={"Cohort": [{"n": 3}, {"n": 4, "note": "x"}]},
        provenance={"seed": 7},
    )
    assert written == path
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """All start tags with their attributes, and the nesting of non-void elements."""

    VOID = {"meta", "img", "input", "br", "link"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found, self.open = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


def test_elements_are_nested_right(page):
    assert Tags(page).open == []


def test_page_says_its_language_and_fits_a_phone(page):
    tags = Tags(page)
    assert tags.all("html")[0]["lang"] == "en"
    assert any(m.get("name") == "viewport" and "width=device-width" in m["content"] for m in tags.all("meta"))


def test_page_needs_no_network(page):
    tags = Tags(page)
    sources = [a["src"] for _, a in tags.found if "src" in a]
    assert sources
    assert all(s.startswith("data:image/") for s in sources)
    assert not tags.all("link")
    assert not re.search(r"url\(|@import|https?://", page)
    assert any("default-src 'none'" in m.get("content", "") for m in tags.all("meta"))


def test_a_picture_that_two_cases_show_is_stored_once(case, page, tmp_path):
    both = [case, dataclasses.replace(case, name="again", prediction=case.truth, truth=case.prediction)]
    html = write_report(tmp_path / "r.html", both, title="t").read_text(encoding="utf-8")
    images = Tags(html).all("img")
    stored = [image["src"] for image in images if "src" in image]
    assert len(stored) == len(set(stored)) < len(images) == 2 * len(Tags(page).all("img"))
    numbers = {image["data-picture"] for image in images if "src" in image}
    assert {image["data-same"] for image in images if "src" not in image} <= numbers
    assert len(html) < 1.5 * len(page)


def test_every_picture_has_a_text_alternative(page):
    images = Tags(page).all("img")
    assert (
        len(images) == 3 * (2 + 2 + 2 * 2) + 1
    )  # b0, FA; sticks and two outlines with what lies below; sphere
    described = [i["alt"] for i in images if i.get("class") != "overlay"]
    assert all(len(alt) > 20 and alt.startswith("sub-01") for alt in described)
    assert len(set(described)) == len(described)


def test_every_slider_has_a_name_and_a_spoken_value(page):
    sliders = Tags(page).all("input")
    assert [s["aria-label"] for s in sliders] == [
        f"sub-01: {p} slice" for p in ("axial", "coronal", "sagittal")
    ]
    assert all(re.fullmatch(r"slice \d+ of \d+", s["aria-valuetext"]) for s in sliders)
    assert len({s["id"] for s in sliders}) == 3


def test_pictures_decode_and_stack_the_shown_slices(page):
    slices = [len(s["data-slices"].split(",")) for s in Tags(page).all("input")]
    sprites = [Image.open(io.BytesIO(base64.b64decode(s.split(",", 1)[1]))) for s in image_sources(page)]
    assert all(sprite.size[1] % slices[0] == 0 for sprite in sprites[:2])


def test_direction_picture_of_left_right_fibres_is_red(page):
    uri = image_sources(page)[1]
    pixels = np.asarray(
        Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("RGB"), dtype=float
    )
    bright = pixels[pixels.max(axis=-1) > 100]
    assert len(bright) > 100
    assert (bright[:, 0] > 4 * bright[:, 1:].max(axis=1)).mean() > 0.99


def test_tables_hold_the_values_and_a_missing_one_reads_na(page):
    assert "<td>0.810</td>" in page
    assert "<td>n/a</td>" in page
    assert '<th scope="row">seed</th><td>7</td>' in page
    assert "<tr><td>4</td><td>x</td></tr>" in page


def test_page_names_the_gradient_table_by_its_hash(case, page, tmp_path):
    found = re.search(r"Table SHA-256</th><td>([0-9a-f]{16})</td>", page)
    other = case.table.select(torch.arange(len(case.table)).roll(1))
    html = write_report(tmp_path / "r.html", [Case("s", case.image, other)], title="t").read_text(
        encoding="utf-8"
    )
    assert found
    assert found[1] not in html


def test_names_are_escaped(case, tmp_path):
    evil = Case("<script>alert(1)</script>", case.image, case.table)
    html = write_report(tmp_path / "r.html", [evil], title="<b>&").read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "<h1>&lt;b&gt;&amp;</h1>" in html


def test_a_case_may_come_from_a_file_without_labels(case, tmp_path):
    write_dwi(tmp_path / "scan.nii.gz", case.image, case.table)
    html = write_report(tmp_path / "r.html", [Case("scan", tmp_path / "scan.nii.gz")], title="t").read_text(
        encoding="utf-8"
    )
    assert "Direction-encoded FA" in html
    assert "outlined" not in html


def test_a_table_without_tensor_gives_a_page_that_says_so(case, tmp_path):
    few = torch.arange(5)
    html = write_report(
        tmp_path / "r.html", [Case("s", case.image[few], case.table.select(few))], title="t"
    ).read_text(encoding="utf-8")
    assert "not shown: the table does not determine a tensor" in html


def test_further_maps_get_their_own_pictures(case, tmp_path):
    extra = Case("s", case.image, case.table, maps={"Uncertainty": torch.rand(case.image.shape[1:])})
    html = write_report(tmp_path / "r.html", [extra], title="t").read_text(encoding="utf-8")
    shown = re.findall(r"<figcaption>Uncertainty, 0 to ([\d.]+)</figcaption>", html)
    assert len(shown) == 3
    assert float(shown[0]) == pytest.approx(0.99, abs=0.02)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"prediction": torch.zeros(2, 2, 2)},
            ValueError,
            r"s: 'prediction' has grid \(2, 2, 2\), the image",
        ),
        ({"image": torch.zeros(3, 4, 4, 4)}, TypeError, "s: image is a Tensor, expected a MetaTensor"),
        ({"table": None}, ValueError, "s: 0 gradients for 33 volumes"),
    ],
    ids=["grid", "no-affine", "no-table"],
)
def test_input_that_does_not_fit_is_refused_by_name(case, tmp_path, change, error, message):
    arguments = {"name": "s", "image": case.image, "table": case.table} | change
    with pytest.raises(error, match=message):
        write_report(tmp_path / "r.html", [Case(**arguments)], title="t")


def test_labels_with_another_affine_are_refused(case, tmp_path):
    moved = AFFINE.clone()
    moved[0, 3] += 2.0
    labels = MetaTensor(case.prediction[None].float(), affine=moved)
    with pytest.raises(ValueError, match="s: 'prediction' lies up to 2 mm beside the image"):
        write_report(tmp_path / "r.html", [Case("s", case.image, case.table, labels)], title="t")


def test_a_failure_leaves_the_old_page_and_nothing_else(case, tmp_path):
    path = tmp_path / "r.html"
    path.write_text("old", encoding="utf-8")
    broken = Case("s", case.image, case.table, prediction=torch.zeros(1))
    with pytest.raises(ValueError, match="prediction"):
        write_report(path, [case, broken], title="t")
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert path.read_text(encoding="utf-8") == "old"


def test_outline_is_opaque_inside_is_light_and_background_is_clear():
    labels = np.zeros((48, 48), int)
    labels[12:36, 12:36] = 3
    uri = label_uri([labels], class_colours([0, 3]))
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("RGBA"))
    zoom = pixels.shape[0] // 48
    assert pixels[0, 0, 3] == 0
    assert tuple(pixels[24 * zoom, 12 * zoom]) == (*OKABE_ITO[0], 255)
    assert 0 < pixels[24 * zoom, 24 * zoom, 3] < 128


def test_text_colours_reach_the_contrast_of_wcag_aa():
    style = (files("dmri_monai.report") / "assets" / "style.css").read_text(encoding="utf-8")
    colour = {k: tuple(bytes.fromhex(v)) for k, v in re.findall(r"--(\w+): #([0-9a-f]{6})", style)}
    for text in ("text", "muted", "accent"):
        for ground in ("page", "card"):
            assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
    assert contrast(colour["line"], colour["card"]) >= 3


@pytest.mark.parametrize("rgb", OKABE_ITO, ids=hex_colour)
def test_class_colours_stand_out_on_a_dark_picture(rgb):
    assert contrast(rgb, (0, 0, 0)) >= 3


@pytest.mark.parametrize("rgb", COLOURS, ids=hex_colour)
def test_shell_colours_stand_out_on_white(rgb):
    assert contrast(rgb, (255, 255, 255)) >= 3


def test_sphere_shows_each_shell_once_and_once_mirrored():
    two = [table(2, 20, 1000.0), table(0, 24, 3000.0)]
    both = type(two[0])(torch.cat([t.bvals for t in two]), torch.cat([t.bvecs for t in two]))
    axes = gradient_sphere(both).axes[0]
    counts = [len(c._offsets3d[0]) for c in axes.collections]
    assert counts == [20, 20, 24, 24]
    outer = np.stack(axes.collections[2]._offsets3d, axis=1)
    inner = np.stack(axes.collections[0]._offsets3d, axis=1)
    np.testing.assert_allclose(np.linalg.norm(outer, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(inner, axis=1), 3**-0.5, atol=1e-6)
    np.testing.assert_allclose(outer, both.bvecs[22:].numpy(), atol=1e-6)
