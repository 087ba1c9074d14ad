"""Written fibre orientation densities: the same function on the same world directions for DIPY and MRtrix3."""

import json
import shutil
import subprocess

import nibabel
import numpy as np
import pytest
import torch
from dipy.data import get_fnames
from monai.data import MetaTensor
from torch import nn
from torch.nn.functional import normalize

from dmri_monai.gradients import grid_rotation
from dmri_monai.inference.model import load_model
from dmri_monai.inference.result import Prediction
from dmri_monai.qspace.fibre_density import DENSITY_IRREPS, density_of_peaks, peaks_of_density
from dmri_monai.scan import Scan
from dmri_monai.transforms import turn_directions
from tests.conftest import ORIENTATIONS, SPACINGS_MM, grid_affine
from tests.small_models import save_model

SIZE = (5, 4, 3)
GENERATOR = torch.Generator().manual_seed(1)
GRIDS = {
    "RAS": grid_affine(ORIENTATIONS["RAS"], SPACINGS_MM["iso2"]),
    "LAS": grid_affine(ORIENTATIONS["LAS"], SPACINGS_MM["iso2"]),
    "oblique-right": grid_affine(ORIENTATIONS["oblique-right"], SPACINGS_MM["1.7x1.7x5"]),
    "oblique-left": grid_affine(ORIENTATIONS["oblique-left"], SPACINGS_MM["1.7x1.7x5"]),
}
needs_mrtrix = pytest.mark.skipif(
    shutil.which("sh2peaks") is None, reason="no MRtrix3: sh2peaks is not installed"
)


def peaks():
    """(6, X, Y, Z) of two crossing fibres in every voxel, the first the larger."""
    generator = torch.Generator().manual_seed(0)
    first = normalize(torch.randn(3, *SIZE, generator=generator), dim=0)
    second = normalize(torch.linalg.cross(first, torch.randn(3, *SIZE, generator=generator), dim=0), dim=0)
    return torch.cat([0.5 * first, 0.35 * second])


def written(density, affine, out):
    """File of a prediction of `density` (45, X, Y, Z) in the world frame."""
    table = {"bvals": torch.tensor([0.0, 1000.0]), "bvecs": torch.tensor([[0.0, 0, 0], [1, 0, 0]])}
    scan = Scan.of_arrays(torch.ones(2, *SIZE), **table, affine=affine)
    image = MetaTensor(density, affine=affine)
    found = Prediction("fod", image, None, 0.0, (), {"Versions": {"dmri_monai": "0"}}, scan, {})
    return found.write(out)


def angles(one, other):
    """(V,) degrees between axes (V, 3)."""
    one, other = (normalize(torch.as_tensor(v).double().reshape(-1, 3), dim=1) for v in (one, other))
    return torch.rad2deg((one * other).sum(1).abs().clamp(max=1).acos())


def has_tops(path):
    """(V,) whether the function that DIPY reads in the file is largest along the true world direction."""
    from dipy.core.geometry import cart2sphere
    from dipy.reconst.shm import real_sh_tournier

    stored = np.asarray(nibabel.load(path).dataobj)
    assert stored.shape == (*SIZE, 45)
    fibres = peaks()[:3].movedim(0, -1).reshape(-1, 3).double()
    generator = torch.Generator().manual_seed(1)
    around = normalize(fibres + 0.3 * torch.randn(200, *fibres.shape, generator=generator).double(), dim=2)
    _, theta, phi = cart2sphere(*torch.cat([fibres.unsqueeze(0), around]).movedim(2, 0).numpy())
    basis, _, _ = real_sh_tournier(8, theta.ravel(), phi.ravel(), legacy=False)
    values = np.einsum("pvc,vc->pv", basis.reshape(*theta.shape, 45), stored.reshape(-1, 45))
    return (values[0] > 0.99 * values[1:].max(0)) & (values[0] > 1.3 * values[1:].mean(0))


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS.keys())
def test_dipy_finds_the_world_directions_in_the_file(affine, tmp_path):
    density = density_of_peaks(peaks())
    assert has_tops(written(density, affine, tmp_path / "out").files["prediction"]).all()
    turned = written(turn_directions(density, DENSITY_IRREPS, ORIENTATIONS["oblique-left"]), affine, tmp_path)
    assert has_tops(turned.files["prediction"]).mean() < 0.2  # the control


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS.keys())
def test_files_beside_the_density_hold_its_peaks_and_their_number(affine, tmp_path):
    files = written(density_of_peaks(peaks()), affine, tmp_path).files
    stems = ("scan_fod", "scan_fodpeaks", "scan_fodnpeaks")
    assert {path.name for path in files.values()} == {f"{s}.{e}" for s in stems for e in ("nii.gz", "json")}
    found = nibabel.load(files["peaks"])
    np.testing.assert_allclose(found.affine, affine, atol=1e-4)
    vectors = found.get_fdata()
    assert angles(vectors[..., :3], peaks()[:3].movedim(0, -1)).max() < 3
    assert angles(vectors[..., 3:6], peaks()[3:].movedim(0, -1)).max() < 4
    assert np.isnan(vectors[..., 6:]).all()
    assert (np.asarray(nibabel.load(files["npeaks"]).dataobj) == 2).all()
    sidecar = json.loads(files["sidecar"].read_text())
    assert sidecar["OrientationEncoding"]["SphericalHarmonicBasis"] == "MRtrix3"
    peaks_said, count_said = (
        json.loads(files[f"{kind} sidecar"].read_text()) for kind in ("peaks", "npeaks")
    )
    assert peaks_said["OrientationEncoding"]["Type"] == "3vector"  # not of length 1
    assert (peaks_said["Frame"], count_said["Units"]) == ("RAS+ world", "number of fibre populations")


def mrtrix_peaks(path, out):
    subprocess.run(["sh2peaks", str(path), str(out), "-num", "2", "-quiet", "-force"], check=True)
    return nibabel.load(out).get_fdata()


@needs_mrtrix
@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS.keys())
def test_mrtrix_finds_the_peaks_that_we_find(affine, tmp_path):
    density = density_of_peaks(peaks())
    found = mrtrix_peaks(written(density, affine, tmp_path).files["prediction"], tmp_path / "mrtrix.nii.gz")
    ours = peaks_of_density(density).movedim(0, -1)
    for first in (0, 3):
        assert angles(found[..., first : first + 3], ours[..., first : first + 3]).max() < 1
        lengths = [np.linalg.norm(v[..., first : first + 3], axis=-1) for v in (found, ours.numpy())]
        np.testing.assert_allclose(*lengths, rtol=1e-2)


@needs_mrtrix
@pytest.mark.parametrize("name", ["LAS", "oblique-right", "oblique-left"])
def test_mrtrix_finds_other_peaks_where_a_density_is_not_turned_into_the_world(name, tmp_path):
    """The control: coefficients as they are in the frame of the voxels."""
    density, affine = density_of_peaks(peaks()), GRIDS[name]
    voxel = turn_directions(density, DENSITY_IRREPS, grid_rotation(affine).T)
    found = mrtrix_peaks(written(voxel, affine, tmp_path).files["prediction"], tmp_path / "mrtrix.nii.gz")
    assert angles(found[..., :3], peaks_of_density(density).movedim(0, -1)[..., :3]).median() > 10


class Sharpest(nn.Module):
    """A density from the l = 2 harmonics of the first shell: least signal is along the fibre."""

    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, image):
        slots = 4
        second = image[:, 1 + 4 * slots : 6 + 4 * slots]
        there = (image[:, :1] > 0.5).float()
        rest = image.new_zeros(len(image), 39, *image.shape[2:])
        return torch.cat([0.28 * there, self.sign * second, rest], dim=1)


@pytest.mark.parametrize("sign", [-1.0, 1.0], ids=["along", "control-across"])
@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS.keys())
def test_direction_survives_the_way_from_a_scan_to_the_file(affine, sign, tmp_path):
    """Resampling, harmonics in the voxel frame, network, the way back: one fibre, known in the world."""
    fibre = normalize(torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64), dim=0)
    generator = torch.Generator().manual_seed(0)
    bvals = torch.tensor([0.0, 0.0, *[2000.0] * 60], dtype=torch.float64)
    bvecs = normalize(torch.randn(62, 3, generator=generator, dtype=torch.float64), dim=1) * (
        bvals > 0
    ).unsqueeze(1)
    signal = 800 * torch.exp(-bvals * (0.2e-3 + 1.5e-3 * (bvecs @ fibre).square()))
    image = signal.float()[:, None, None, None].expand(-1, 9, 8, 7).clone()
    model = load_model(
        save_model(tmp_path / "model.pt", "fod", architecture="any", spacing_mm=(2.5, 2.5, 2.5)), "cpu"
    )
    model.network = Sharpest(sign)
    found = model.predict(Scan.of_arrays(image, bvals, bvecs, affine))
    middle = found.write(tmp_path / "out").peaks()[:3, 4, 4, 3]
    angle = float(angles(middle, fibre)[0])
    assert angle < 1 if sign < 0 else angle > 60
    if sign < 0:
        assert int(found.n_fibres()[4, 4, 3]) == 1
    if sign < 0 and shutil.which("sh2peaks"):
        theirs = mrtrix_peaks(tmp_path / "out" / "scan_fod.nii.gz", tmp_path / "mrtrix.nii.gz")
        assert float(angles(theirs[4, 4, 3, :3], fibre)[0]) < 1


def test_prediction_without_directions_says_so(scan, checkpoint):
    found = load_model(checkpoint, "cpu").predict(Scan.read(scan))
    with pytest.raises(ValueError, match="tissue has no directions"):
        found.peaks()
    with pytest.raises(ValueError, match="tissue does not tell the number of fibres"):
        found.n_fibres()


@pytest.mark.parametrize("control", [False, True], ids=["own voxels", "control: sizes along other axes"])
def test_directions_among_neighbours_turn_with_the_scan(control, monkeypatch):
    """The released model on thick slices: a turn by which other axes are nearest to left, front and up."""
    block = Scan.read(get_fnames(name="small_64D")[0])
    affine = GRIDS["oblique-left"]
    axis, angle = normalize(torch.tensor([0.3, -0.2, 1.0]).double(), dim=0), 1.4
    cross = torch.linalg.cross(axis.expand(3, 3), torch.eye(3).double()).T
    turn = torch.eye(3).double() + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    turned = affine.clone()
    turned[:3] = turn @ affine[:3]
    if control:
        sizes = torch.tensor([[1.7, 1.7, 5.0]]).double()
        monkeypatch.setattr("dmri_monai.networks.any_protocol.spacing_of", lambda _: sizes.roll(roll, 1))
    bvals, bvecs = block.table.bvals, block.table.bvecs.double()
    roll = 0
    first = load_model("fod", "cpu").predict(Scan.of_arrays(block.signal, bvals, bvecs, affine)).peaks()
    roll = 1
    second = (
        load_model("fod", "cpu").predict(Scan.of_arrays(block.signal, bvals, bvecs @ turn.T, turned)).peaks()
    )
    there = first[0].isfinite()
    assert there.float().mean() > 0.3
    expected = torch.einsum("ij,jv->vi", turn, first[:3, there].double())
    off = angles(second[:3, there].nan_to_num().movedim(0, -1), expected)
    assert (off.max() > 1.0) if control else (off.max() < 0.1)
