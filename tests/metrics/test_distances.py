import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import HausdorffDistanceMetric

from dmri_monai.metrics import HausdorffDistanceMM
from tests.conftest import ORIENTATIONS, grid_affine

SPACING = (2.0, 2.5, 5.0)


def boxes(shift):
    """Prediction and label (1, 1, X, Y, Z), a cube and the same moved by `shift` voxels along z."""
    pred, label = torch.zeros(1, 1, 12, 12, 12), torch.zeros(1, 1, 12, 12, 12)
    label[..., 3:8, 3:8, 3:6] = 1
    pred[..., 3:8, 3:8, 3 + shift : 6 + shift] = 1
    return pred, label


@pytest.mark.parametrize("orientation", ["oblique-left", "LAS"])
def test_distance_is_in_millimetres_of_the_labels_grid(orientation):
    pred, label = boxes(shift=2)
    label = MetaTensor(label, affine=grid_affine(ORIENTATIONS[orientation], SPACING))
    metric = HausdorffDistanceMM(include_background=True)
    metric(pred, label)
    assert float(metric.aggregate()) == pytest.approx(2 * SPACING[2])


def test_distance_of_monai_itself_is_in_voxels():
    """The control: without spacing the same boxes are two voxels apart."""
    metric = HausdorffDistanceMetric(include_background=True, percentile=95)
    metric(*boxes(shift=2))
    assert float(metric.aggregate()) == 2


def test_label_without_an_affine_is_refused():
    with pytest.raises(TypeError, match="the label is a Tensor, expected a MetaTensor"):
        HausdorffDistanceMM()(*boxes(shift=1))
