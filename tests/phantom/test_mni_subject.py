"""Subjects of the MNI152 anatomy: realism, truth, acquisition, files."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from dmri_monai.gradients import GradientTable
from dmri_monai.phantom import Acquisition, Subject, crossing_share, make_subject, write_dataset

pytest.importorskip("nilearn", reason="the MNI152 template stands in nilearn's wheel")
from dmri_monai.phantom.anatomy import voxel_centres
from dmri_monai.phantom.mni import MAPS, MniAnatomy, MsLesions, tracts
from tests.check.fibres import checked

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "phantom.py"
SMALL = {"anatomy": "mni152", "shape": (22, 27, 20), "spacing_mm": (8.0, 8.0, 8.0), "scheme": "clinical-32"}
TINY = {"anatomy": "mni152", "shape": (17, 21, 15), "spacing_mm": (10.0, 10.0, 10.0), "scheme": "clinical-32"}
B0_ONLY = GradientTable(torch.zeros(1), torch.zeros(1, 3))


def upright(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> torch.Tensor:
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = -affine[:3, :3] @ (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    return affine


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("phantom_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def subject(benchmark) -> Subject:
    """A head at 3 mm, upright, 64 directions, one b0."""
    shape = (60, 74, 52)
    scan = {"anatomy": "mni152", "shape": shape, "scheme": benchmark.table_64()}
    return make_subject(4, affine=upright((3.0, 3.0, 3.0), shape), **scan)


@pytest.fixture(scope="module")
def measured(benchmark, subject) -> dict[str, float]:
    return benchmark.realism(subject)


@pytest.mark.parametrize(
    "name",
    [
        "intracranial volume",
        "brain / intracranial volume",
        "WM mean diffusivity",
        "cortical GM mean diffusivity",
        "deep GM mean diffusivity",
        "CSF mean diffusivity",
        "corpus callosum FA",
        "WM FA",
        "GM FA",
        "WM voxels with crossings",
    ],
)
def test_phantom_lies_in_the_published_range(benchmark, measured, name):
    _, low, high, _ = benchmark.PUBLISHED[name]
    assert low <= measured[name] <= high


def test_share_of_crossings_stands_in_the_parameters(subject):
    share = float((subject.npeaks[subject.dseg == 1] >= 2).float().mean())
    assert subject.parameters["CrossingShare"] == pytest.approx(share)
    assert crossing_share(subject.dseg, subject.npeaks) == pytest.approx(share)


def test_every_counted_peak_has_a_direction(subject):
    present = subject.peaks_world.unflatten(0, (3, 3)).isfinite().all(dim=1)
    assert torch.equal(present.sum(dim=0).byte(), subject.npeaks)
    assert torch.equal(present, present.sort(dim=0, descending=True).values)


def test_share_of_crossings_without_white_matter_is_null_in_json():
    middle = {"shape": (3, 3, 3), "spacing_mm": (2.0, 2.0, 2.0), "scheme": B0_ONLY}  # grey matter and fluid
    made = make_subject(0, anatomy="mni152", **middle)
    assert not bool((made.dseg == 1).any())
    assert made.parameters["CrossingShare"] is None


def test_check_finds_the_table_consistent_and_a_flipped_one_not(subject):
    mirror = GradientTable(subject.table.bvals, subject.table.bvecs * torch.tensor([-1.0, 1.0, 1.0]))
    right = checked(subject.image.as_tensor(), subject.table, subject.affine)
    wrong = checked(subject.image.as_tensor(), mirror, subject.affine)
    assert right.to_dict()["coherence"]["verdict"] == "consistent"
    assert wrong.to_dict()["coherence"]["verdict"] != "consistent"


def test_same_seed_gives_the_same_subject_and_another_seed_another():
    first, again, other = (make_subject(s, **TINY) for s in (7, 7, 8))
    for name in ("clean", "dseg", "lesion", "npeaks", "affine"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert torch.equal(first.image.as_tensor(), again.image.as_tensor())
    assert all(torch.equal(first.maps[name], again.maps[name]) for name in MAPS)
    assert not torch.equal(first.dseg, other.dseg)


def test_mirrored_storage_shows_the_same_world():
    shape = (22, 27, 20)
    affine = upright((8.0, 8.0, 8.0), shape)
    mirror = affine.clone()
    mirror[0] *= -1
    right, left = (
        make_subject(5, anatomy="mni152", shape=shape, affine=a, scheme="clinical-32")
        for a in (affine, mirror)
    )
    assert torch.equal(right.dseg, left.dseg.flip(0))
    torch.testing.assert_close(right.clean, left.clean.flip(1), rtol=1e-3, atol=0.1)


def test_finer_grid_sees_the_same_tissue_volumes():
    volumes = []
    for spacing, shape in (((5.0, 5.0, 5.0), (34, 42, 30)), ((3.0, 3.0, 5.0), (57, 70, 30))):
        affine = upright(spacing, shape)
        anatomy = MniAnatomy.draw(5)
        fractions = anatomy.voxel_fractions(affine, shape)
        volumes.append(fractions[:3].sum(dim=1) * np.prod(spacing) / 1e6)
    torch.testing.assert_close(volumes[0], volumes[1], rtol=0.03, atol=0)


def test_volume_fractions_sum_to_one():
    fractions = MniAnatomy.draw(3).voxel_fractions(upright((8.0, 8.0, 8.0), (22, 27, 20)), (22, 27, 20))
    torch.testing.assert_close(fractions.sum(dim=0), torch.ones(fractions.shape[1]), rtol=0, atol=1e-5)
    assert float(fractions.min()) >= -1e-6


def test_larger_ventricles_hold_more_fluid():
    anatomy = MniAnatomy.draw(3)
    shape = (22, 27, 20)
    small, large = (
        dataclasses.replace(anatomy, ventricle_mm=mm).voxel_fractions(upright((8.0, 8.0, 8.0), shape), shape)
        for mm in (-1.0, 3.0)
    )
    ml = (large[2] - small[2]).sum() * 0.512
    assert 10 < float(ml) < 80


def test_heads_differ_in_size():
    litres = []
    for seed in range(3):
        inside = MniAnatomy.draw(seed).voxel_fractions(upright((8.0, 8.0, 8.0), (22, 27, 20)), (22, 27, 20))
        litres.append(float(inside[:3].sum()) * 512e-6)
    assert 1.0 < min(litres) < max(litres) < 1.8
    assert max(litres) / min(litres) > 1.03


def test_lesions_lie_in_white_matter_near_where_their_names_say():
    anatomy = MniAnatomy.draw(6)
    lesions = MsLesions.draw(6, anatomy)
    shape = anatomy.template.shape.at(anatomy.warp.to_template(lesions.centres))
    ventricle, cortex = -shape[:, 1] - anatomy.ventricle_mm, -shape[:, 3]
    for i, place in enumerate(lesions.places):
        assert place != "periventricular" or 1.5 < float(ventricle[i]) < 7
        assert place != "juxtacortical" or float(cortex[i]) < 3.5
    assert bool((anatomy.fractions(lesions.centres, 1.0)[0] > 0.9).all())


def test_lesion_label_has_the_volume_that_was_drawn():
    anatomy = MniAnatomy.draw(6)
    lesions = MsLesions.draw(6, anatomy)
    points = voxel_centres(upright((1.5, 1.5, 1.5), (100, 120, 90)), (100, 120, 90))
    ml = float((lesions.at(points) >= 0.5).sum()) * 1.5**3 / 1000
    drawn = sum(lesions.parameters()["volume_ml"])
    assert 0.6 * drawn < ml < 1.3 * drawn


def test_lesion_loads_spread_over_an_order_of_magnitude():
    anatomy = MniAnatomy.draw(6)
    loads = [sum(MsLesions.draw(seed, anatomy).parameters()["volume_ml"]) for seed in range(12)]
    assert max(loads) > 4 * min(loads)
    assert 2 < np.median(loads) < 15


def test_bundle_masks_overlap_white_matter_only_and_are_not_empty(subject):
    bundles = subject.maps["bundles"]
    assert len(bundles) == len(tracts())
    assert bool((subject.maps["probseg"][0][bundles.amax(0) == 1] >= 0.5).all())
    assert int(bundles.flatten(1).sum(1).min()) >= 5


def test_artifacts_change_the_scan_and_not_the_truth():
    plain = make_subject(3, **SMALL)
    spoilt = make_subject(3, **SMALL, acquisition=Acquisition(artifacts="strong"))
    assert torch.equal(plain.dseg, spoilt.dseg)
    assert torch.equal(plain.clean, spoilt.clean)
    difference = (plain.image.as_tensor() - spoilt.image.as_tensor()).abs().mean()
    assert float(difference) > 0.02 * float(plain.parameters["SignalLevel"])
    applied = {entry["artifact"] for entry in spoilt.parameters["Artifacts"]["applied"]}
    assert applied
    assert "noise" not in applied
    json.dumps(spoilt.parameters)


@pytest.mark.parametrize("anatomy", ["procedural", "mni152"])
def test_randomised_subjects_differ_in_protocol(anatomy):
    acquisition = Acquisition(randomise=True)
    scans = [
        make_subject(
            s, anatomy=anatomy, acquisition=acquisition, scheme=B0_ONLY, spacing_mm=(7.0, 7.0, 7.0 + s)
        )
        for s in (1, 2, 3)
    ]
    assert len({s.parameters["SNR"] for s in scans}) == 3
    assert len({tuple(s.dseg.shape) for s in scans}) == 3
    assert all(8 <= s.parameters["SNR"] <= 40 for s in scans)
    if anatomy == "mni152":
        assert len({s.parameters["Contrast"]["te_ms"] for s in scans}) == 3


def test_randomised_head_is_whole_in_any_storage_order():
    for seed in range(3):
        subject = make_subject(
            seed,
            anatomy="mni152",
            acquisition=Acquisition(randomise=True),
            scheme=B0_ONLY,
            spacing_mm=(8.0, 8.0, 10.0),
        )
        litres = float((subject.dseg > 0).sum() * torch.linalg.det(subject.affine[:3, :3]).abs()) / 1e6
        assert 1.0 < litres < 1.8


@pytest.mark.parametrize("anatomy", ["procedural", "mni152"])
@pytest.mark.parametrize("seed", [3, 5])
def test_randomised_head_is_whole_in_a_given_shape(anatomy, seed):
    shape, wide = (24, 28, 24), Acquisition(randomise=True)
    subject = make_subject(seed, anatomy=anatomy, acquisition=wide, scheme=B0_ONLY, shape=shape)
    assert subject.dseg.shape == shape
    faces = [side for axis in range(3) for side in subject.brain_mask.movedim(axis, 0)[[0, -1]]]
    assert max(int(face.sum()) for face in faces) == 0


def test_given_arguments_win_over_randomisation():
    subject = make_subject(
        1, **TINY | {"scheme": "single-64"}, snr=12.0, acquisition=Acquisition(randomise=True)
    )
    assert len(subject.table) == 70
    assert subject.dseg.shape == TINY["shape"]
    assert subject.parameters["SNR"] == 12.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("mni") / "bids", subjects=2, seed=3, progress=False, **TINY)


def test_same_arguments_write_the_same_bytes(folder, tmp_path):
    write_dataset(tmp_path, subjects=2, seed=3, progress=False, **TINY)
    found, again = (
        {str(p.relative_to(f)): p.read_bytes() for p in sorted(f.rglob("*")) if p.is_file()}
        for f in (folder, tmp_path)
    )
    assert found == again


def test_derivatives_hold_every_map_on_the_grid_of_the_scan(folder):
    truth = folder / "derivatives/ground-truth"
    scan = nibabel.load(folder / "sub-01/dwi/sub-01_dwi.nii.gz")
    for name in MAPS:
        image = nibabel.load(truth / f"sub-01/dwi/sub-01_{name}.nii.gz")
        np.testing.assert_array_equal(image.affine, scan.affine)
        assert json.loads((truth / f"sub-01/dwi/sub-01_{name}.json").read_text(encoding="utf-8"))[
            "Description"
        ]
    rows = (truth / "bundles.tsv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + image.shape[3] == 1 + len(tracts())


def test_sidecar_reports_crossings_and_lesions(folder):
    phantom = json.loads((folder / "sub-01/dwi/sub-01_dwi.json").read_text(encoding="utf-8"))["Phantom"]
    assert phantom["AnatomyName"] == "mni152"
    assert 0.5 < phantom["CrossingShare"] < 1
    assert set(phantom["Lesions"]["count"]) == {"periventricular", "juxtacortical", "deep"}
    assert phantom["PeakRule"] == {"MinimumFraction": 0.1, "MinimumAngleDeg": 25.0}


def test_folder_of_another_anatomy_is_refused(folder):
    with pytest.raises(FileExistsError, match="anatomy = mni152"):
        write_dataset(folder, subjects=1, seed=3, progress=False, **TINY | {"anatomy": "procedural"})
