"""Every writer on a disk that fills up: an error names the file, earlier files stay as they were, nothing is beside."""

from __future__ import annotations

import hashlib
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from monai.transforms import Compose

from dmri_monai.inference.model import load_model
from dmri_monai.integrations.torchscript import export_model
from dmri_monai.report.index import IndexRow, write_index
from dmri_monai.scan import Scan
from dmri_monai.training.caching import DiskCache
from dmri_monai.transforms import LoadDWId
from tests.faults.counting import ended, fork
from tests.faults.trainings import train

SIZES = (500, 8_000, 30_000, 100_000, 1_000_000)  # bytes up to which a file may grow


@pytest.fixture(scope="module")
def writers(scan, checkpoint) -> dict[str, Callable[[Path], object]]:
    """What writes into a folder, by name."""
    found = load_model(checkpoint, "cpu").predict(Scan.read(scan))
    rows = [IndexRow(f"sub-{i:03}", "tissue", "predicted", ("doubtful",) * 20, None) for i in range(100)]

    def cache(folder: Path) -> None:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        DiskCache(folder / "cache", Compose([LoadDWId("image")]))({"image": str(scan)})

    return {
        "training": lambda folder: train(folder, epochs=len(list(folder.iterdir())) + 1),
        "prediction": lambda folder: found.write(folder, report=False),
        "cache": cache,
        "export": lambda folder: export_model(checkpoint, folder / "model.ts"),
        "index": lambda folder: write_index(folder / "index.html", rows, title="Predictions"),
        "scan": lambda folder: found.scan.write(folder / "scan.nii.gz"),
    }


def digests(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["training", "prediction", "cache", "export", "index", "scan"])
def test_full_disk_leaves_whole_files_and_nothing_beside(tmp_path, count, writers, name, size):
    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            writers[name](tmp_path)
        except OSError as error:
            if str(tmp_path) not in str(error):
                raise

    writers["index"](tmp_path)  # what was there before
    before = digests(tmp_path)
    assert ended(fork(write)) == 0, count("full disks", "wrong")
    after = digests(tmp_path)
    hidden = [path for path in after if Path(path).name.startswith(".")]
    count("full disks", "left over", len(hidden))
    lost = [path for path in before if path not in after]
    count("full disks", "lost" if lost else "right")
    assert not hidden
    assert not lost
    if "index.html" in before and name != "index":
        assert after["index.html"] == before["index.html"]


@pytest.mark.parametrize("size", SIZES[:2])
def test_training_goes_on_after_a_full_disk(tmp_path, count, size):
    train(tmp_path, epochs=1)

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        train(tmp_path, epochs=2)

    assert ended(fork(full)) == 1
    train(tmp_path, epochs=2)
    count("full disks", "right")
    assert not list(tmp_path.glob(".*"))
