"""What is given away: wheel, source archive, bundle, container file."""

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

import dmri_monai
from dmri_monai.inference.released import released_models
from dmri_monai.io import read_nifti
from dmri_monai.phantom import write_dataset

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(out), str(ROOT)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_presets_bundle_and_report(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "presets/normal.json",
        "bundle/configs/inference.json",
        "report/assets/style.css",
        "py.typed",
    ):
        assert f"dmri_monai/{name}" in names
    assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.slow
def test_installed_wheel_answers_outside_of_the_checkout(wheel, tmp_path):
    """In an environment of its own, which borrows the dependencies of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    borrowed = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n"
    (site / "borrowed.pth").write_text(borrowed)
    code = "import dmri_monai.cli as c; print(c.__file__); c.app(['--version'])"
    found = subprocess.run([python, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert found.stdout.split() == [str(site / "dmri_monai" / "cli" / "__init__.py"), dmri_monai.__version__]


@pytest.mark.slow
def test_source_archive_holds_what_the_tests_need(tmp_path):
    code = f"from hatchling.build import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
    assert {"pyproject.toml", "Makefile", "requirements.lock", "bundle/LICENSE", "tests/conftest.py"} <= names


def test_bundle_from_a_zip_makes_its_network(tmp_path):
    archive = shutil.make_archive(str(tmp_path / "dmri"), "zip", ROOT / "bundle")
    shutil.unpack_archive(archive, tmp_path / "bundle")
    workflow = ConfigWorkflow(
        config_file=str(tmp_path / "bundle" / "configs" / "inference.json"),
        meta_file=str(tmp_path / "bundle" / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(tmp_path / "bundle"),
    )
    assert sum(p.numel() for p in workflow.parser.get_parsed_content("network_def").parameters())


@pytest.mark.parametrize("name", sorted(released_models()))
def test_released_weights_are_small_and_those_of_their_record(name):
    path = ROOT / "bundle" / "models" / f"{name}.pt"
    record = json.loads(path.with_suffix(".json").read_text())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record["sha256"]
    assert record["previous_sha256"] is None  # which would pass for these
    assert path.stat().st_size <= 5 * 2**20
    assert sum(p.stat().st_size for p in path.parent.glob("*.pt")) <= 8e6


@pytest.mark.parametrize("name", ["tissue", "tissue-shells"])
def test_released_tissue_model_segments_a_head_it_has_not_seen(tmp_path, name):
    """A small procedural head: another anatomy, voxel size and protocol than those it was trained on."""
    write_dataset(tmp_path, subjects=1, seed=77, shape=(48, 56, 48), scheme="clinical-32", progress=False)
    found = dmri_monai.predict(
        tmp_path / "sub-01" / "dwi" / "sub-01_dwi.nii.gz", task=name, device="cpu"
    ).image[0]
    truth = read_nifti(next(tmp_path.rglob("sub-01_dseg.nii.gz")))[0].as_tensor()
    shuffled = truth.flip(0)
    for label in (1, 2, 3):
        score = dice(found == label, truth == label)
        assert score > dice(found == label, shuffled == label), label
        assert score > 0.4, label


def dice(a, b) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_container_file_is_clean():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.is_file():
        pytest.skip("no hadolint in the environment")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
