"""Metrics in MONAI's evaluator, as a bundle config builds it, down to the CSV tables."""

from __future__ import annotations

import csv
from copy import deepcopy

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor

from dmri_monai.metrics import mean_sd
from dmri_monai.training.comparison import compare

SHAPE = (4, 5, 6)
CONFIG = {
    "evaluator": {
        "_target_": "monai.engines.SupervisedEvaluator",
        "device": "$torch.device('cpu')",
        "val_data_loader": "@loader",
        "network": "$torch.nn.Identity()",
        "key_val_metric": {
            "angle": {
                "_target_": "dmri_monai.metrics.MetricHandler",
                "metric_fn": {"_target_": "dmri_monai.metrics.AngularError"},
                "inputs": {"mask": "mask"},
            }
        },
        "additional_metrics": {
            "rmse": {
                "_target_": "monai.handlers.RootMeanSquaredError",
                "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
            },
            "psnr": {
                "_target_": "dmri_monai.metrics.MetricHandler",
                "metric_fn": {"_target_": "dmri_monai.metrics.MaskedPSNR", "data_range": 1.0},
                "inputs": {"mask": "mask"},
            },
        },
        "val_handlers": [{"_target_": "dmri_monai.metrics.SubjectTable", "path": "@path"}],
        "decollate": "@decollate",
    },
}


def turned(degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin(), 0 * angle]).view(3, 1, 1, 1).expand(3, *SHAPE).clone()


def items() -> list[dict[str, torch.Tensor]]:
    """Three subjects, off by 5, 20 and 50 degrees inside their masks, by 90 outside."""
    out = []
    for i, degrees in enumerate((5.0, 20.0, 50.0)):
        image, mask = turned(degrees), torch.ones(1, *SHAPE)
        mask[..., i:] = 0 if i else 1
        image[:, mask[0] == 0] = turned(90.0)[:, mask[0] == 0]
        meta = {"filename_or_obj": f"data/sub-{i:02d}/dwi/sub-{i:02d}_dwi.nii.gz"}
        out.append({"image": MetaTensor(image, meta=meta), "label": turned(0.0), "mask": mask})
    return out


def evaluator(path, batch_size: int = 1, decollate: bool = True, **changes):
    parser = ConfigParser({**deepcopy(CONFIG), "path": str(path), "decollate": decollate})
    parser["imports"] = ["$import torch", "$import monai"]
    parser["loader"] = DataLoader(Dataset(items()), batch_size=batch_size)
    for key, value in changes.items():
        parser[key.replace("__", "#")] = value
    return parser.get_parsed_content("evaluator")


def read(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize(("batch_size", "decollate"), [(1, True), (2, True), (2, False)])
def test_every_subject_is_measured_with_its_own_mask(tmp_path, batch_size, decollate):
    engine = evaluator(tmp_path / "table.csv", batch_size, decollate)
    engine.run()
    np.testing.assert_allclose(engine.state.metric_details["angle"][:, 0].numpy(), [5, 20, 50], rtol=1e-5)
    np.testing.assert_allclose(engine.state.metrics["angle"], 25, rtol=1e-5)


def test_table_has_one_row_per_subject_and_one_column_per_value(tmp_path):
    evaluator(tmp_path / "table.csv").run()
    rows = read(tmp_path / "table.csv")
    assert [row["subject"] for row in rows] == ["sub-00_dwi", "sub-01_dwi", "sub-02_dwi"]
    assert list(rows[0]) == ["subject", "angle_median_deg", "angle_share_within", "rmse", "psnr"]
    np.testing.assert_allclose([float(row["angle_median_deg"]) for row in rows], [5, 20, 50], rtol=1e-5)


def test_summary_has_mean_and_standard_deviation(tmp_path):
    evaluator(tmp_path / "table.csv").run()
    first = read(tmp_path / "table_summary.csv")[0]
    assert first["metric"] == "angle_median_deg"
    assert first["text"] == f"{25.0:.3f} ± {np.std([5, 20, 50], ddof=1):.3f}"
    assert first["n"] == "3"


def test_a_second_run_starts_from_nothing(tmp_path):
    engine = evaluator(tmp_path / "table.csv")
    engine.run()
    engine.run()
    assert len(read(tmp_path / "table.csv")) == 3


def test_an_input_that_the_batch_lacks_is_named(tmp_path):
    changes = {"evaluator__key_val_metric__angle__inputs": {"mask": "brain"}}
    with pytest.raises(
        ValueError, match=r"AngularError needs 'brain'; the batch holds \['image', 'label', 'mask'\]"
    ):
        evaluator(tmp_path / "table.csv", **changes).run()


def test_columns_can_be_named_in_the_config(tmp_path):
    changes = {"evaluator__val_handlers__0__columns": {"rmse": ["a", "b"]}}
    with pytest.raises(ValueError, match="'rmse' has 1 columns, but 2 names"):
        evaluator(tmp_path / "table.csv", **changes).run()
    evaluator(
        tmp_path / "named.csv", evaluator__val_handlers__0__columns={"angle": ["median", "share"]}
    ).run()
    assert list(read(tmp_path / "named.csv")[0])[1:3] == ["angle_median", "angle_share"]


def test_details_have_the_form_that_the_comparison_of_evaluators_reads(tmp_path):
    one = evaluator(tmp_path / "t.csv")
    one.name = "net"
    objective = {
        "key_metric": {"angle": None},
        "columns": {"angle": ["median", "share"]},
        "lower_is_better": True,
    }
    rows = compare([one], objective, tmp_path)
    np.testing.assert_allclose(rows[0]["median"], 25, rtol=1e-5)
    assert [row["subject"] for row in read(tmp_path / "angle.csv")] == ["0", "1", "2"]


def test_mean_and_deviation_pass_over_nan():
    mean, sd, n = mean_sd(torch.tensor([0.5, float("nan"), 0.7, 0.9]))
    np.testing.assert_allclose([mean, sd, n], [0.7, 0.2, 3], rtol=1e-6)
