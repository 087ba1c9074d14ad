"""What the documentation shows works: every ```python and ```bash block runs, in order, page by page.

Blocks that install, serve, or need what a test has not are ```console. The commands run as written, with settings added
that make them small.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dmri_monai.io.bids import data_list
from dmri_monai.phantom import write_dataset

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "getting-started.md",
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SMALL = "--device cpu --spacing_mm [6.0,6.0,6.0] --size tiny"
TRAINING = f"{SMALL} --max_epochs 1 --crop_size [16,16,16] --num_workers 0"
SETTINGS = {"pretraining": TRAINING, "training": TRAINING, "evaluating": SMALL, "inferring": SMALL}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A BIDS folder of five small heads."""
    out = tmp_path_factory.mktemp("docs") / "my_bids"
    write_dataset(out, subjects=5, seed=0, shape=(20, 24, 20), spacing_mm=(6.0, 6.0, 6.0), progress=False)
    return out


@pytest.fixture
def desk(data, tmp_path) -> Path:
    """The folder a reader works in: the bundle, a data set and a scan."""
    for name in ("bundle", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "my_bids").symlink_to(data)
    scan = next(data.glob("sub-01/dwi/*_dwi.nii.gz"))
    for ending in ("nii.gz", "bval", "bvec"):
        source = scan.with_name(scan.name.replace("nii.gz", ending))
        for name in ("my_scan", "sub-01_dwi"):
            (tmp_path / f"{name}.{ending}").symlink_to(source)
    return tmp_path


def small(script: str) -> str:
    """`script` with what makes its trainings small, and the paths of this test."""
    script = script.replace("\\\n", " ").replace("/data/my_bids", "my_bids")
    for name, settings in SETTINGS.items():
        script = re.sub(rf"(monai\.bundle run {name}\b.*)", rf"\1 {settings}", script)
    return re.sub(r"(dmri-monai phantom.*)", r"\1 --subjects 5 --shape 20 24 20 --spacing 6 6 6", script)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_the_page_runs(page, desk):
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks
    python = "\n".join(code for language, code in blocks if language == "python")
    shell = "\n".join(small(code) for language, code in blocks if language == "bash")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MPLBACKEND": "Agg"}
    for command in (["bash", "-e", "-c", shell], [sys.executable, "-c", python]):
        done = subprocess.run(command, cwd=desk, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def test_labels_and_masks_named_as_the_page_says_are_found(tmp_path):
    page = (ROOT / "docs" / "tutorials" / "own-data.md").read_text(encoding="utf-8")
    names = re.findall(r"^  (\S*ses-1\S*)", page, re.MULTILINE)
    scan, label, mask = (tmp_path / name for name in names)
    for path in (scan, label, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (item,) = data_list(tmp_path, labels={"label": "dseg"})
    assert (item["image"], item["label"], item["mask"]) == (str(scan), str(label), str(mask))


def test_every_page_of_the_site_is_in_its_navigation():
    listed = set(re.findall(r": ([\w/-]+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
