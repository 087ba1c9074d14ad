"""What a training is continued with: every setting but those of a list, and the scans with their tables."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from monai.transforms import Compose

from dmri_monai.training.continuation import MAY_CHANGE, check_same_inputs, inputs_of, settings_of
from dmri_monai.training.randomness import SeededDataset
from dmri_monai.transforms import LoadDWId

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "bundle" / "configs"


def config(**changes):
    return json.loads((CONFIGS / "train.json").read_text(encoding="utf-8")) | changes


@pytest.mark.parametrize("name", ["train", "pretrain"])
def test_every_setting_of_a_config_may_change_or_counts(name):
    content = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    counted = {key.split("#")[0] for key in settings_of(content)}
    assert counted - {"number of processes"} == set(content) - set(MAY_CHANGE)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"learning_rate": 0.01}, {"amp": True}, {"batch_size": 3}, {"split": {"train": 1.0}}],
    ids=lambda change: next(iter(change)),
)
def test_what_shapes_the_result_counts(change):
    assert settings_of(config(**change)) != settings_of(config())


def test_a_setting_deep_inside_is_named_as_the_command_line_writes_it():
    deep = config()
    deep["train"]["trainer"]["accumulation_steps"] = 4
    found = settings_of(deep)
    assert found["train#trainer#accumulation_steps"] == 4


@pytest.mark.parametrize("name", ["max_epochs", "num_workers", "device", "cache_dir", "patience", "mlflow"])
def test_what_may_change_does_not_count(name):
    assert settings_of(config(**{name: "other"})) == settings_of(config())


@pytest.mark.parametrize("typed", ["true", "True", True], ids=repr)
def test_words_of_a_command_line_count_as_what_they_mean(typed):
    assert settings_of(config(amp=typed)) == settings_of(config(amp=True))


def test_of_pretrained_weights_the_content_counts(tmp_path):
    for name, content in (("a.pt", b"1"), ("moved.pt", b"1"), ("b.pt", b"2")):
        (tmp_path / name).write_bytes(content)
    one, moved, other = (
        settings_of(config(pretrained=str(tmp_path / n))) for n in ("a.pt", "moved.pt", "b.pt")
    )
    assert one == moved
    assert one != other


@pytest.fixture
def copied(scan, tmp_path, monkeypatch):
    """A scan of one's own with its tables."""
    monkeypatch.setattr("dmri_monai.training.continuation.current_config", lambda: {"seed": 0})
    folder = tmp_path / "data"
    shutil.copytree(scan.parent, folder)
    return folder / scan.name


def record(image, label="label.nii.gz"):
    data = SeededDataset([{"image": str(image), "label": label}], Compose([LoadDWId("image")]))
    return inputs_of(data, data)


@pytest.mark.parametrize("ending", ["bvec", "bval"])
def test_another_table_is_refused_with_both_digests(copied, ending):
    before = record(copied)
    check_same_inputs(before, record(copied), Path("last.pt"))
    table = copied.with_name(copied.name.replace("nii.gz", ending))
    rows = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([rows[0] + " ", *rows[1:]]), encoding="utf-8")
    expected = (
        rf"last.pt was trained with the file train 0 table {table.name}: 'SHA-256 \w+', this run has 'SHA-256"
    )
    with pytest.raises(ValueError, match=expected):
        check_same_inputs(before, record(copied), Path("last.pt"))


def test_another_image_and_a_missing_scan_are_refused(copied):
    before = record(copied)
    copied.write_bytes(copied.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"image .*: '\d+ bytes', this run has '\d+ bytes'"):
        check_same_inputs(before, record(copied), Path("last.pt"))
    none = inputs_of(SeededDataset([], Compose([])), SeededDataset([], Compose([])))
    with pytest.raises(ValueError, match="this run has nothing"):
        check_same_inputs(before, none, Path("last.pt"))


def test_a_data_set_that_was_moved_is_the_same(copied):
    before = record(copied)
    moved = copied.parent.with_name("moved")
    copied.parent.rename(moved)
    check_same_inputs(before, record(moved / copied.name), Path("last.pt"))


def test_what_may_change_is_documented_with_its_reason():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = page[page.index("| setting | why |") : page.index("**Damaged records")]
    assert set(re.findall("`(\\w+)`", table)) == set(MAY_CHANGE)
