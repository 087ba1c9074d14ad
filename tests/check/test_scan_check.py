"""The check as a whole: plain JSON, every code explained in the documentation, real scans not accused."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dmri_monai.artifacts import slice_dropout
from dmri_monai.check import CODES, ScanCheck, check, check_scan, dropped_slices, quick_check
from dmri_monai.check.finding import STAGES, Finding
from dmri_monai.gradients import GradientTable
from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.scan import Scan

DOCS = Path(__file__).resolve().parents[2] / "docs" / "check.md"
REAL = (
    "sub-canon_acq-axial", "sub-canon_acq-oblique", "sub-canon_acq-sagittal", "sub-canon_acq-turned",
    "sub-decubitus_acq-left", "sub-decubitus_acq-supine", "sub-philips2mm", "sub-philips3mm",
    "sub-siemenssagittal_dir-AP", "sub-siemenssagittal_dir-HF", "sub-tilted", "sub-toshiba_acq-axial",
    "sub-toshiba_acq-oblique",
)  # fmt: skip


def real(shared_dir: Path, name: str) -> Path:
    path = shared_dir / "data" / "real" / name.split("_")[0] / "dwi" / f"{name}_dwi.nii.gz"
    if not path.is_file():
        pytest.skip(f"needs the real scan {path.name}")
    return path


def explained(text: str) -> list[str]:
    """Codes in the first column of the tables of the page."""
    return re.findall(r"^\| `([a-z0-9-]+)`", text, re.MULTILINE)


def test_every_code_is_explained_once_in_the_documentation():
    assert sorted(explained(DOCS.read_text(encoding="utf-8"))) == sorted(CODES)


def test_a_code_left_out_of_the_documentation_would_be_noticed():
    text = DOCS.read_text(encoding="utf-8").replace("| `volume-order`", "| volume order")
    assert sorted(explained(text)) != sorted(CODES)


def test_a_finding_needs_a_known_code():
    with pytest.raises(ValueError, match="unknown finding 'flipped'"):
        Finding("flipped", "no such code")


def test_every_code_belongs_to_a_stage_in_the_order_of_judgement():
    order = [STAGES.index(stage) for stage, _ in CODES.values()]
    assert order == sorted(order)


def test_what_is_not_finite_is_null_in_json():
    result = ScanCheck((2, 3, 3, 3), (1.0, 1.0, math.nan), "left", 1, None, (), snr=math.inf)
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["snr"] is None
    assert content["spacing_mm"] == [1.0, 1.0, None]


def test_reading_and_checking_import_no_monai(scan):
    code = (
        "import sys\nfrom dmri_monai.check import check_scan\n"
        f"check_scan({str(scan)!r})\nprint([m for m in ('monai', 'e3nn', 'dipy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", REAL)
def test_right_tables_of_real_scans_are_consistent_and_nothing_is_found(shared_dir, name):
    result = check_scan(real(shared_dir, name))
    assert result.coherence.verdict == "consistent"
    assert result.ok, result.lines()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ([[-1, 0, 0], [0, 1, 0], [0, 0, 1]], "bvecs-flipped-x"),
        ([[1, 0, 0], [0, 1, 0], [0, 0, -1]], "bvecs-flipped-z"),
        ([[0, 1, 0], [1, 0, 0], [0, 0, 1]], "bvecs-swapped-xy"),
        ([[0, 1, 0], [0, 0, 1], [1, 0, 0]], "bvecs-permuted"),
    ],
    ids=["flip-x", "flip-z", "swap-xy", "cycle"],
)
@pytest.mark.parametrize("name", ["sub-toshiba_acq-axial", "sub-tilted"])
def test_wrong_axes_of_real_scans_are_named(shared_dir, name, change, code):
    scan = Scan.read(real(shared_dir, name))
    wrong = scan.table.to_fsl(scan.affine) @ torch.tensor(change).double().T
    table = GradientTable.from_fsl(scan.table.bvals, wrong, scan.affine)
    assert check(Scan(scan.image, table)).codes == (code,)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_real_scans_of_thick_slices_are_not_accused(shared_dir, axis):
    scan = Scan.read(real(shared_dir, "sub-toshiba_acq-oblique"))
    pairs = scan.signal.unflatten(1 + axis, (-1, 2)).mean(dim=2 + axis)
    affine = scan.affine.clone()
    affine[:3, axis] *= 2
    thick = Scan.of_arrays(pairs, scan.table.bvals, scan.table.bvecs, affine)
    assert check(thick).coherence.verdict == "consistent"


@pytest.mark.parametrize("roll", [1, 6])
def test_volumes_of_a_real_scan_in_another_order_are_noticed(shared_dir, roll):
    scan = Scan.read(real(shared_dir, "sub-tilted"))
    moved = Scan.of_arrays(scan.signal.roll(roll, 0), scan.table.bvals, scan.table.bvecs, scan.affine)
    assert check(moved).codes == ("volume-order",)


def test_dropped_slices_of_a_real_scan_are_found(shared_dir):
    scan = Scan.read(real(shared_dir, "sub-tilted"))
    mask = head_mask(mean_b0(scan.signal, scan.table.bvals))
    volumes, slices = torch.tensor([3, 9, 15]), torch.tensor([10, 20, 25])
    spoilt = slice_dropout(scan.signal, volumes=volumes, slices=slices, loss=0.4, axis=2)
    found = {(d.volume, d.slice) for d in dropped_slices(spoilt, scan.table, mask, axis=2)}
    assert found == {(3, 10), (9, 20), (15, 25)}


def test_the_quick_check_takes_a_fraction_of_a_second(shared_dir):
    scan = Scan.read(real(shared_dir, "sub-philips2mm"))
    times = []
    for _ in range(3):
        start = time.process_time()
        quick_check(scan)
        times.append(time.process_time() - start)
    assert min(times) < 0.3
