"""Trainings on scans whose grids differ, and of which some are smaller than a crop."""

import json
import shutil
from pathlib import Path

import nibabel
import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
CROP = {"crop_size": [24, 24, 24], "batch_size": 3, "crops_per_scan": 1, "max_epochs": 1}


@pytest.fixture(scope="module")
def different_grids(dataset_dir, tmp_path_factory) -> str:
    """The phantom subjects, of which each has fewer slices than the one before; 20 x 24 voxels within the slice."""
    root = tmp_path_factory.mktemp("grids") / "data"
    shutil.copytree(dataset_dir, root)
    images = sorted(root.rglob("*.nii.gz"))
    assert images
    for path in images:
        image = nibabel.load(path)
        number = int(path.name.removeprefix("sub-").split("_")[0])
        image.slicer[:, :, : 20 - number].to_filename(path)
    for path in root.rglob("*_dwi.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        number = int(path.name.removeprefix("sub-").split("_")[0])
        content["SliceTiming"] = content["SliceTiming"][: 20 - number]
        path.write_text(json.dumps(content), encoding="utf-8")
    return str(root)


@pytest.mark.parametrize(
    ("config", "overlays", "own"),
    [
        ("train", (), {}),
        ("train", (), {"architecture": "any", "size": "tiny", "network_options": {}}),
        ("pretrain", (), {}),
        ("train", ("lesion_crops",), {"objective": "lesion"}),
        ("train", ("cached_harmonics",), {"cache_rate": 0.0}),
        ("train", ("fod_unsupervised",), {}),
    ],
    ids=["train", "any", "pretrain", "lesion_crops", "cached_harmonics", "fod_unsupervised"],
)
def test_scans_smaller_than_the_crop_are_trained_on_in_one_batch(
    prepare, different_grids, tmp_path, config, overlays, own
):
    paths = [str(CONFIGS / f"{name}.json") for name in overlays]
    if overlays == ("fod_unsupervised",):  # its own network
        own = {
            "architecture": "any",
            "size": ["4x0e", "4x0e"],
            "pretrained": str(CONFIGS.parent / "bundle" / "models" / "fod.pt"),
            "network_options": {
                "channels": 10, "hidden": 20, "blocks": 2, "deconvolution": True, "neighbours": 2
            },
        }  # fmt: skip
    if "cached_harmonics" in overlays:
        own = {**own, "cache_dir": str(tmp_path / "cache")}
    folders = {"dataset_dir": different_grids, "output_dir": str(tmp_path / "out")}
    prepare(config, *paths, **{**CROP, **folders, **own}).run()
    assert (tmp_path / "out" / "model.pt").is_file()


@pytest.mark.parametrize("overlay", [None, "cached_harmonics"])
def test_what_is_padded_is_no_part_of_a_masked_label(prepare, different_grids, tmp_path, overlay):
    paths = [] if overlay is None else [str(CONFIGS / f"{overlay}.json")]
    cached = {"cache_dir": str(tmp_path / "cache"), "cache_rate": 0.0} if overlay else {}
    folders = {"dataset_dir": different_grids, "output_dir": str(tmp_path / "out")}
    workflow = prepare("train", *paths, objective="crossings", masked=True, **{**CROP, **folders, **cached})
    (crop,) = workflow.parser.get_parsed_content("train#dataset")[0]
    label = crop["label"].as_tensor()
    assert label.shape[1:] == (24, 24, 24)
    assert (label[:, :2] == -1).all()  # 20 voxels along x
    assert (label >= 0).any()
