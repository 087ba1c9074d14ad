"""Preprocessed items on disk: the same items, never a stale or a damaged one, and crops alone are read."""

from __future__ import annotations

import errno
import os
import random
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    Lambdad,
    Orientationd,
    RandFlipd,
    RandSpatialCropSamplesd,
    Spacingd,
    SpatialPadd,
    Transform,
)

from dmri_monai.io import write_dwi
from dmri_monai.phantom import make_subject
from dmri_monai.training.caching import DiskCache
from dmri_monai.training.randomness import EpochSampler, SeededDataset
from dmri_monai.transforms import LoadDWId, SphericalHarmonicsd, collate_dwi

SHAPE, SPACING_MM = (16, 18, 14), (8.0, 8.0, 8.0)


@pytest.fixture(scope="module")
def subject():
    return make_subject(0, shape=SHAPE, spacing_mm=SPACING_MM, scheme="clinical-32")


@pytest.fixture
def scan(subject, tmp_path) -> Path:
    path = tmp_path / "sub-01_dwi.nii.gz"
    write_dwi(path, subject.image, subject.table)
    path.with_name("sub-01_dwi.json").write_text('{"PhaseEncodingDirection": "j-"}', encoding="utf-8")
    return path


def leading(spacing_mm: float = 9.0) -> list:
    return [LoadDWId("image"), Orientationd("image", "RAS", labels=None), Spacingd("image", [spacing_mm] * 3)]


def preprocessing(*last) -> Compose:
    crop = RandSpatialCropSamplesd("image", roi_size=[6, 6, 6], num_samples=1, random_size=False)
    return Compose([*leading(), crop, RandFlipd("image", prob=0.5, spatial_axis=0), *last])


def entries(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def batches(scan: Path, workers: int, cache_dir: Path | None) -> list[dict]:
    dataset = SeededDataset(
        [{"image": str(scan)}], preprocessing(SphericalHarmonicsd("image")), seed=5, cache_dir=cache_dir
    )
    sampler = EpochSampler(dataset, seed=5)
    loader = DataLoader(dataset, sampler=sampler, num_workers=workers, collate_fn=collate_dwi)
    found = []
    for sampler.epoch in (1, 2, 3):
        found += list(loader)
    return found


@pytest.mark.parametrize("workers", [0, 2], ids=lambda n: f"{n}-workers")
def test_batches_are_the_same_with_and_without_a_cache(scan, tmp_path, workers):
    plain, kept = batches(scan, 0, None), batches(scan, workers, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 1
    for one, other in zip(plain, kept, strict=True):
        assert one.keys() == other.keys()
        torch.testing.assert_close(other["image"].as_tensor(), one["image"].as_tensor(), rtol=0, atol=0)
        torch.testing.assert_close(other["image"].affine, one["image"].affine, rtol=0, atol=0)
        torch.testing.assert_close(
            other["image"].meta["voxel_frame"], one["image"].meta["voxel_frame"], rtol=0, atol=0
        )
    assert not torch.equal(plain[0]["image"], plain[1]["image"])  # epochs draw other crops


def test_an_item_comes_back_as_the_transforms_left_it(scan, tmp_path):
    transform = preprocessing()
    direct = transform({"image": str(scan)}, end=3)
    kept = DiskCache(tmp_path / "cache", transform)({"image": str(scan)})
    torch.testing.assert_close(kept["image"].as_tensor(), direct["image"].as_tensor(), rtol=0, atol=0)
    torch.testing.assert_close(kept["bvecs"], direct["bvecs"], rtol=0, atol=0)
    assert isinstance(kept["image"], MetaTensor)
    assert kept["image"].meta.keys() == direct["image"].meta.keys()
    assert kept["image"].meta["phase_encoding_world"].tolist() != [0.0, 0.0, 0.0]
    assert len(kept["image"].applied_operations) == len(direct["image"].applied_operations) == 2


def test_the_second_time_the_scan_is_not_read(scan, tmp_path, monkeypatch):
    cache = DiskCache(tmp_path / "cache", preprocessing())
    first = cache({"image": str(scan)})
    monkeypatch.setattr(LoadDWId, "__call__", lambda *_: pytest.fail("the scan was read again"))
    torch.testing.assert_close(cache({"image": str(scan)})["image"], first["image"], rtol=0, atol=0)


@pytest.mark.parametrize("mapped", [True, False], ids=["memory-map", "control-read-whole"])
def test_a_crop_does_not_bring_the_volume_into_memory(tmp_path, mapped):
    volume = torch.arange(32.0**3).view(1, 32, 32, 32)
    path = tmp_path / "large.pt"
    torch.save({"entry": path.name, "item": {"image": volume}}, path)
    cache = DiskCache(tmp_path / "cache", Compose([]))
    cache.path = lambda item: path
    item = cache({}) if mapped else torch.load(path, weights_only=True)["item"]
    torch.testing.assert_close(item["image"][:, :8, :8, :8], volume[:, :8, :8, :8])
    assert (mapped_file(item["image"].data_ptr()) == str(path)) == mapped


def mapped_file(address: int) -> str | None:
    """The file that is mapped to memory at `address`."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        places, _, _, _, _, *name = line.split(maxsplit=5)
        first, last = (int(place, 16) for place in places.split("-"))
        if first <= address < last:
            return name[0] if name else None
    return None


def test_volumes_that_are_not_used_are_not_read(tmp_path):
    path = tmp_path / "large.pt"
    torch.save({"entry": path.name, "item": {"image": torch.zeros(64, 64, 64, 64)}}, path)
    cache = DiskCache(tmp_path / "cache", Compose([]))
    cache.path = lambda item: path
    before = resident_bytes("RssFile")
    item = cache({})
    item["image"][:8].sum()
    assert resident_bytes("RssFile") - before < 24 * 2**20  # 8, and what the kernel maps around them
    item["image"].sum()
    assert resident_bytes("RssFile") - before > 60 * 2**20


def resident_bytes(kind: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def test_changing_an_item_leaves_its_file_alone(scan, tmp_path):
    cache = DiskCache(tmp_path / "cache", preprocessing())
    item = cache({"image": str(scan)})
    before = item["image"].as_tensor().clone()
    item["image"].as_tensor().zero_()
    torch.testing.assert_close(cache({"image": str(scan)})["image"].as_tensor(), before, rtol=0, atol=0)


@pytest.mark.parametrize("ending", ["nii.gz", "bval", "bvec", "json"])
def test_an_entry_made_before_its_scan_changed_is_not_read(scan, tmp_path, subject, ending):
    cache = DiskCache(tmp_path / "cache", preprocessing())
    old = cache.path({"image": str(scan)})
    changed = scan.with_name(f"sub-01_dwi.{ending}")
    status = changed.stat()
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert cache.path({"image": str(scan)}) != old


def test_another_image_under_the_same_name_gives_another_item(scan, tmp_path, subject):
    cache = DiskCache(tmp_path / "cache", preprocessing())
    first = cache({"image": str(scan)})["image"].as_tensor().clone()
    write_dwi(scan, 2 * subject.image, subject.table)
    torch.testing.assert_close(cache({"image": str(scan)})["image"].as_tensor(), 2 * first)


def test_other_content_of_the_same_size_and_time_gives_another_item(scan, tmp_path, subject):
    cache = DiskCache(tmp_path / "cache", preprocessing())
    first = cache({"image": str(scan)})["bvecs"].clone()
    table = scan.with_name("sub-01_dwi.bvec")
    status = table.stat()
    rows = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([rows[1], rows[0], rows[2]]) + "\n", encoding="utf-8")
    os.utime(table, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert table.stat().st_size == status.st_size
    assert (cache({"image": str(scan)})["bvecs"] - first).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["of-another-item", "of-another-program"])
def test_a_foreign_entry_is_refused_by_name(scan, tmp_path, kind):
    cache = DiskCache(tmp_path / "cache", preprocessing())
    cache({"image": str(scan)})
    (entry,) = entries(tmp_path / "cache")
    other = cache.path({"image": str(scan), "subject": "02"})
    if kind == "of-another-item":
        shutil.copy(entry, other)
    else:
        torch.save({"image": torch.zeros(3, 4, 4, 4)}, other)
    with pytest.raises(ValueError, match=f"{other} is .*: another program or hand put it there; delete it"):
        cache({"image": str(scan), "subject": "02"})


def test_no_single_flipped_bit_of_an_entry_is_read(scan, tmp_path):
    whole = DiskCache(tmp_path / "cache", preprocessing())({"image": str(scan)})["image"].as_tensor().clone()
    (entry,) = entries(tmp_path / "cache")
    content, draw = entry.read_bytes(), random.Random(0)
    for _ in range(20):
        place = draw.randrange(8 * len(content))
        spoilt = bytearray(content)
        spoilt[place // 8] ^= 1 << place % 8
        entry.write_bytes(spoilt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = DiskCache(tmp_path / "cache", preprocessing())({"image": str(scan)})
        torch.testing.assert_close(again["image"].as_tensor(), whole, rtol=0, atol=0)


def test_an_entry_is_compared_once_for_all_processes_that_load_data(scan, tmp_path, monkeypatch):
    cache = DiskCache(tmp_path / "cache", preprocessing())
    cache({"image": str(scan)})
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(
            1
        )  # as in a worker of a data loader: the parent's threads do not survive the fork
        again = DiskCache(tmp_path / "cache", preprocessing())
        again._verified = cache._verified
        monkeypatch.setattr("dmri_monai.training.caching._check_sums", lambda path: os._exit(1))
        again({"image": str(scan)})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def changes() -> dict[str, Compose]:
    harmonics = {"shells": [1000.0], "l_max": 4}
    return {
        "spacing": Compose(leading(10.0)),
        "axes": Compose([LoadDWId("image"), Orientationd("image", "LPS", labels=None)]),
        "encoded": Compose([*leading(), SphericalHarmonicsd("image", **harmonics)]),
        "shells": Compose([*leading(), SphericalHarmonicsd("image", **{**harmonics, "shells": [2000.0]})]),
        "order": Compose([*leading(), SphericalHarmonicsd("image", **{**harmonics, "l_max": 2})]),
        "regularised": Compose(
            [*leading(), SphericalHarmonicsd("image", **harmonics, order_scale=(1, 2, 3))]
        ),
        "table": Compose([LoadDWId("image", b0_threshold=20.0), *leading()[1:]]),
    }


def test_every_setting_of_a_leading_transform_has_entries_of_its_own(scan, tmp_path):
    kinds = {"as-it-was": preprocessing(), **changes()}
    paths = {name: DiskCache(tmp_path / "cache", t).path({"image": str(scan)}) for name, t in kinds.items()}
    assert len(set(paths.values())) == len(kinds)


def test_settings_of_random_transforms_and_the_same_ones_made_anew_share_entries(scan, tmp_path):
    others = [preprocessing(), preprocessing(SphericalHarmonicsd("image")), Compose(leading())]
    paths = {DiskCache(tmp_path / "cache", t).path({"image": str(scan)}) for t in others}
    assert len(paths) == 1


def test_another_release_does_not_read_the_entries_of_this_one(scan, tmp_path, monkeypatch):
    old = DiskCache(tmp_path / "cache", preprocessing()).path({"image": str(scan)})
    monkeypatch.setattr("dmri_monai.__version__", "999")
    assert DiskCache(tmp_path / "cache", preprocessing()).path({"image": str(scan)}) != old


@pytest.mark.parametrize("left", [0, 100, 0.5, 0.999], ids=["empty", "100-bytes", "half", "end-missing"])
def test_a_half_written_entry_is_made_anew(scan, tmp_path, left):
    cache = DiskCache(tmp_path / "cache", preprocessing())
    whole = cache({"image": str(scan)})["image"].as_tensor().clone()
    (entry,) = entries(tmp_path / "cache")
    size = entry.stat().st_size
    os.truncate(entry, left if isinstance(left, int) else int(left * size))
    with pytest.warns(UserWarning, match=f"damaged, made anew: {entry}"):
        again = cache({"image": str(scan)})
    torch.testing.assert_close(again["image"].as_tensor(), whole, rtol=0, atol=0)
    assert entry.stat().st_size == size


def test_an_entry_that_would_run_code_is_not_loaded(scan, tmp_path):
    cache = DiskCache(tmp_path / "cache", preprocessing())
    torch.save({"image": Planted(tmp_path / "ran")}, cache.path({"image": str(scan)}))
    with pytest.warns(UserWarning, match="damaged, made anew"):
        assert isinstance(cache({"image": str(scan)})["image"], MetaTensor)
    assert not (tmp_path / "ran").exists()


class Planted:
    """What an attacker would leave: unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_full_disk_ends_in_a_clear_error_and_leaves_nothing(scan, tmp_path, monkeypatch):
    cache = DiskCache(tmp_path / "cache", preprocessing())

    def full(item, path):
        Path(path).write_bytes(b"begun")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=rf"cannot write {tmp_path}.*: .*No space left"):
        cache({"image": str(scan)})
    assert not list((tmp_path / "cache").iterdir())


def test_a_folder_that_cannot_be_written_is_named_at_once(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match=f"cannot write to the cache folder {tmp_path / 'file'}: "):
        DiskCache(tmp_path / "file", preprocessing())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_named_at_once(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=f"cannot write to the cache folder {tmp_path}: "):
        DiskCache(tmp_path, preprocessing())


def test_settings_that_cannot_be_compared_are_refused(tmp_path):
    transform = Compose([LoadDWId("image"), Lambdad("image", lambda image: 2 * image)])
    with pytest.raises(TypeError, match="cache: the settings of one of LoadDWId, Lambdad cannot be compared"):
        DiskCache(tmp_path, transform)


class Label(Transform):
    """Adds what cannot be read back without running code."""

    def __call__(self, data):
        return {**data, "of": Path("x")}


def test_an_item_that_could_not_be_read_back_is_refused_and_not_kept(tmp_path):
    with pytest.raises(TypeError, match="cache: an item may hold tensors, arrays, text and numbers"):
        DiskCache(tmp_path, Compose([Label()]))({"image": "x"})
    assert not list(tmp_path.iterdir())


def test_items_of_cropped_and_padded_scans_can_be_kept(scan, tmp_path):
    more = [
        CropForegroundd("image", source_key="image", allow_smaller=True),
        SpatialPadd("image", [20, 20, 20]),
    ]
    transform = Compose([*leading(), *more, *preprocessing().transforms[3:]])
    kept = DiskCache(tmp_path / "cache", transform)({"image": str(scan)})
    assert kept["image"].shape[1:] == (20, 20, 20)
    assert len(kept["image"].applied_operations) == 4


def test_a_scan_that_is_gone_is_an_error_even_if_its_entry_is_there(scan, tmp_path):
    cache = DiskCache(tmp_path / "cache", preprocessing())
    cache({"image": str(scan)})
    shutil.rmtree(tmp_path, ignore_errors=True)
    with pytest.raises(FileNotFoundError, match="sub-01_dwi"):
        cache({"image": str(scan)})


def test_memory_and_disk_cannot_both_be_asked_for(tmp_path):
    with pytest.raises(
        ValueError, match=r"cache_rate is 0.5 and cache_dir is .*cache: set one of them alone"
    ):
        SeededDataset([{"image": "x"}], preprocessing(), cache_rate=0.5, cache_dir=tmp_path / "cache")
