"""What a training writes down of its scans: from headers and b-values, the same as their checks find."""

import shutil

import pytest
import torch
from ignite.engine import Engine
from monai.transforms import Compose, Identityd
from torch import nn

from dmri_monai.check import check_scan
from dmri_monai.inference.encoding import subsample_measurements
from dmri_monai.inference.seen_scans import ScanHeader, range_seen
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.training_range import TrainingRange
from dmri_monai.phantom import write_dataset
from dmri_monai.training.checkpoint import Checkpoint
from dmri_monai.training.randomness import SeededDataset
from dmri_monai.training.scan_range import training_range
from dmri_monai.transforms import LoadDWId

ANY = ModelSpec(architecture="any")
LOAD = LoadDWId("image")


@pytest.fixture(scope="module")
def scans(scan, tmp_path_factory):
    """One of a single shell near b = 1000 in 6 mm voxels, one of three shells in 8 mm."""
    out = tmp_path_factory.mktemp("other")
    grid = {"shape": (12, 12, 12), "spacing_mm": (8.0, 8.0, 8.0)}
    write_dataset(out, subjects=1, seed=1, scheme="hcp-3shell", progress=False, **grid)
    return [scan, next(out.rglob("*_dwi.nii.gz"))]


def dataset(images, *transforms, load=LOAD):
    return SeededDataset([{"image": str(image)} for image in images], Compose([load, *transforms]))


def test_range_is_that_of_the_tables_and_headers(scans):
    found = training_range(dataset(scans), ANY)
    first, second = ScanHeader.read(scans[0]), ScanHeader.read(scans[1])
    assert first.spacing_mm == (6.0, 6.0, 6.0)
    assert len(second.shells) == 3
    assert found.voxel_mm == (6.0, 8.0)
    assert found.directions == (first.shells[0][1], sum(n for _, n in second.shells))
    assert found.bval == (round(first.shells[0][0], 2), round(second.shells[-1][0], 2))
    assert found.snr is None


def test_checks_of_the_same_scans_give_the_same_range_and_their_snr(scans):
    checks = [check_scan(scan) for scan in scans]
    checked, read = range_seen(checks, ANY), training_range(dataset(scans), ANY)
    assert checked.snr is not None
    torch.testing.assert_close(checked.bval, read.bval, rtol=0, atol=0.06)  # checks round
    assert checked.model_copy(update={"snr": None, "bval": None}) == read.model_copy(update={"bval": None})


class Foreign(torch.utils.data.Dataset):
    """Of torch, without the items it loads."""

    transform = Compose([LOAD])


def test_a_data_set_of_another_kind_has_no_range(scans):
    odd = dataset(scans)
    odd.data = [*odd.data, str(scans[0])]
    assert training_range(Foreign(), ANY) == training_range(odd, ANY) == TrainingRange()


def test_of_named_shells_only_these_count(scans):
    spec = ModelSpec(architecture="equivariant", shells=[3000.0])
    found = training_range(dataset(scans), spec)
    assert found.directions == (90.0, 90.0)
    assert found.bval is None
    assert training_range(dataset(scans), spec.replace(shells=[9000.0])).directions is None


def test_thinned_tables_have_as_few_directions_as_training_leaves(scans):
    thinned = ANY.replace(subsample_directions=[6, 30])
    multi = dataset(scans[1:], *subsample_measurements(thinned, thinned.subsample_directions))
    assert training_range(multi, thinned).directions == (18.0, 270.0)
    dropped = dataset(scans[1:], *subsample_measurements(thinned, drop_shells=0.5))
    assert training_range(dropped, thinned).directions == (6.0, 270.0)
    more = ANY.replace(subsample_directions=[200, 300])
    assert training_range(dataset(scans[1:]), more).directions == (270.0, 270.0)


def test_cached_scans_have_the_range_of_their_files(scans, tmp_path):
    whole = training_range(dataset(scans), ANY)
    items = [{"image": str(scan)} for scan in scans]
    for options in ({"cache_rate": 1.0}, {"cache_dir": tmp_path}):
        cached = SeededDataset(items, Compose([LOAD]), **options)
        assert cached[0]["image"].shape[1:] == (20, 24, 20)
        assert training_range(cached, ANY) == whole


def test_without_files_that_can_be_read_there_is_no_range(scans, tmp_path):
    arrays = SeededDataset([{"image": torch.ones(2, 4, 4, 4)}], Compose([LOAD]))
    other = dataset(scans, load=Identityd("image"))
    mixed = SeededDataset([{"image": str(scans[0])}, {"image": torch.ones(2, 4, 4, 4)}], Compose([LOAD]))
    alone = tmp_path / "alone.nii.gz"
    shutil.copy(scans[0], alone)  # without its table
    for one in (arrays, other, mixed, dataset([alone]), dataset([tmp_path / "none.nii.gz"]), [1, 2], None):
        assert training_range(one, ANY) == TrainingRange()


def run(folder, data, spec=ANY, **options):
    engine = Engine(lambda *_: None)
    Checkpoint(folder, nn.Linear(1, 1), {}, spec, **options).attach(engine)
    loader = torch.utils.data.DataLoader(data, batch_size=None)
    engine.run(loader, max_epochs=2 if options else 1)
    return ModelSpec.load(folder / "model.json")


def test_description_holds_the_range_and_a_resumed_training_the_same(scans, tmp_path):
    first = run(tmp_path, dataset(scans))
    assert first.trained_on == training_range(dataset(scans), ANY)
    again = run(tmp_path, dataset(scans), resume=True)
    assert again.replace(sha256=None, previous_sha256=None) == first.replace(
        sha256=None, previous_sha256=None
    )


def test_range_that_was_given_stays(scans, tmp_path):
    own = ANY.replace(trained_on={"snr": [8, 45]})
    assert run(tmp_path, dataset(scans), own).trained_on == own.trained_on
