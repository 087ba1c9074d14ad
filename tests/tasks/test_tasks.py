import json
import math

import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose

from dmri_monai.inference.released import bundle_folder
from dmri_monai.qspace.axes import axis_to_harmonics
from dmri_monai.qspace.conventions import to_basis
from dmri_monai.qspace.fibre_density import density_of_peaks, peaks_of_density
from dmri_monai.tasks import TASKS, find_task
from dmri_monai.training.monitor import Monitored
from dmri_monai.transforms.task_labels import (
    CheckLabeld,
    DensityLabeld,
    FractionLabeld,
    HarmonicsToPeaksd,
    IgnoreOutsided,
)

SIZE = (4, 5, 6)


def objective(name):
    """Loss, metrics and transforms of a task, as the bundle's configs have them."""
    path = bundle_folder() / "configs" / "tasks" / f"{name}.json"
    parser = ConfigParser({"monai": "$__import__('monai')", **json.loads(path.read_text(encoding="utf-8"))})
    parser["imports"] = ["$import monai"]
    return parser.get_parsed_content("objective")


def grid(values, affine=None):
    image = MetaTensor(values, affine=torch.eye(4) if affine is None else affine)
    image.meta["filename_or_obj"] = "sub-01_dseg.nii.gz"
    return image


def item(label, **changes):
    return {"image": grid(torch.zeros(7, *SIZE)), "label": label, **changes}


def perfect(name):
    """Label of a task, and an output of a network that is right everywhere."""
    generator = torch.Generator().manual_seed(0)
    this = find_task(name)
    if name == "fod":
        density = density_of_peaks(torch.randn(9, *SIZE, generator=generator)).unsqueeze(0)
        return density, density
    if name == "fractions":
        every = torch.rand(1, 4, *SIZE, generator=generator).square().softmax(dim=1)
        return every[:, :3], every.log()
    if name == "orientation":
        axes = torch.randn(1, 3, *SIZE, generator=generator)
        return axes, axis_to_harmonics(axes)
    classes = torch.randint(0, this.n_classes, (1, 1, *SIZE), generator=generator)
    if name == "lesion":
        return classes.float(), 40.0 * (classes.float() - 0.5)
    return classes.float(), 20.0 * torch.nn.functional.one_hot(classes[:, 0], this.n_classes).movedim(
        -1, 1
    ).float()


@pytest.mark.parametrize("name", TASKS)
def test_right_output_has_a_smaller_loss_than_a_wrong_one(name):
    label, output = perfect(name)
    loss = objective(name)["loss"]
    wrong = 3 * output.roll(1, dims=-1)
    assert float(loss(output, label)) < 0.1 < float(loss(wrong, label))


@pytest.mark.parametrize("name", TASKS)
def test_right_output_has_a_perfect_key_metric(name):
    label, output = perfect(name)
    this, data = Monitored("metric", objective(name)), {"pred": output[0], "label": label[0]}
    data = Compose(this.postprocessing)(data)
    metric = this.metrics[this.name]
    metric.metric_fn(data["pred"].unsqueeze(0), data["label"].unsqueeze(0))
    value = metric.metric_fn.aggregate()
    value = value[0] if isinstance(value, tuple) else value
    assert float(value) == pytest.approx(0.0 if this.lower_is_better else 1.0, abs=0.1)


def _score_of_label(name):
    """What makes of a label file what the loss takes, in the frame it has."""
    return {"fod": [DensityLabeld("label")], "fractions": [FractionLabeld("label")]}.get(name, [])


def _score(name):
    chosen = objective(name)["score"]
    return chosen if isinstance(chosen, list) else [chosen]


@pytest.mark.parametrize("name", ["tissue", "lesion"])
def test_surface_distance_of_a_task_is_in_millimetres(name):
    this, spacing = find_task(name), torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0]))
    label, output = (
        torch.zeros(1, 6, 6, 6),
        torch.full((this.n_classes if name == "tissue" else 1, 6, 6, 6), -9.0),
    )
    label[:, 1:3] = 1
    output[-3 if name == "tissue" else 0, 1:4] = 9.0
    output = output.softmax(0) if name == "tissue" else output.sigmoid()
    found = Compose(_score(name))({"pred": grid(output, spacing), "label": grid(label, spacing)})
    engine, metric = Engine(lambda *_: [found]), objective(name)["further_metrics"]["hd95"]
    metric.attach(engine, "hd95")
    engine.run([0])
    assert float(engine.state.metric_details["hd95"][0, 0]) == pytest.approx(3.0)


def test_unknown_task_names_the_choices():
    with pytest.raises(
        ValueError,
        match="task is 'tisue', expected one of tissue, lesion, crossings, orientation, fod, fractions",
    ):
        find_task("tisue")


def test_label_of_another_size_is_refused_with_both_grids():
    with pytest.raises(
        ValueError, match=r"'label' has grid \(4, 5, 7\), the image \(4, 5, 6\): sub-01_dseg.nii.gz"
    ):
        CheckLabeld("label", 4)(item(grid(torch.zeros(1, 4, 5, 7))))


def test_label_in_another_space_is_refused():
    moved = torch.eye(4)
    moved[0, 3] = 2.0
    with pytest.raises(ValueError, match="'label' lies up to 2 mm beside the image; .*sub-01_dseg"):
        CheckLabeld("label", 4)(item(grid(torch.zeros(1, *SIZE), moved)))


@pytest.mark.parametrize(
    "value", [4.0, -1.0, 0.5, float("nan")], ids=["too-high", "negative", "fraction", "nan"]
)
def test_label_with_a_value_that_is_no_class_is_refused(value):
    label = torch.zeros(1, *SIZE)
    label[0, 1, 1, 1] = value
    with pytest.raises(ValueError, match=f"holds {value:g}, expected whole numbers from 0 to 3"):
        CheckLabeld("label", 4)(item(grid(label)))


def test_peaks_are_three_volumes_each():
    with pytest.raises(ValueError, match="4 volumes, expected 3 for each peak"):
        CheckLabeld("label", None)(item(grid(torch.zeros(4, *SIZE))))


def test_density_has_45_volumes_or_three_for_each_of_few_peaks():
    for volumes, fine in ((45, True), (9, True), (12, True), (15, False), (44, False), (1, False)):
        given = item(grid(torch.zeros(volumes, *SIZE)))
        if fine:
            Compose(find_task("fod").check())(given)
        else:
            with pytest.raises(RuntimeError) as error:
                Compose(find_task("fod").check())(given)
            assert f"{volumes} volumes, expected 45 of a density to l = 8, or 3" in str(error.value.__cause__)


def test_label_of_peaks_becomes_the_density_that_has_these_peaks():
    axes = torch.eye(3).flatten()[:, None, None, None].repeat(1, *SIZE) * 0.3
    axes[6:] = torch.nan
    density = DensityLabeld("label")({"label": grid(axes)})["label"].as_tensor()
    mass = density[0] * math.sqrt(4 * math.pi)
    torch.testing.assert_close(mass, torch.full_like(mass, 0.6))
    peaks = peaks_of_density(density).unflatten(0, (3, 3))
    assert peaks[2].isnan().all()
    found = (peaks[:2] / peaks[:2].norm(dim=1, keepdim=True)).abs()
    torch.testing.assert_close(
        found.sum(0), torch.tensor([1.0, 1.0, 0.0])[:, None, None, None].expand(3, *SIZE), atol=1e-3, rtol=0
    )


def test_label_in_mrtrix_convention_becomes_the_same_density():
    (density,), _ = perfect("fod")
    stored = to_basis(density, "tournier07", legacy=False)
    torch.testing.assert_close(DensityLabeld("label")({"label": grid(stored)})["label"].as_tensor(), density)
    assert (stored - density).abs().max() > 0.1  # the control: the conventions differ


def test_class_numbers_become_fractions_and_impossible_fractions_are_refused():
    classes = torch.randint(0, 4, (1, *SIZE), generator=torch.Generator().manual_seed(0)).float()
    found = FractionLabeld("label")({"label": grid(classes)})["label"].as_tensor()
    torch.testing.assert_close(found, torch.cat([classes == k for k in (1, 2, 3)]).float())
    with pytest.raises(ValueError, match=r"summing to 1\.5, expected 0 to 1: sub-01"):
        FractionLabeld("label")({"label": grid(torch.full((3, *SIZE), 0.5))})


def test_axes_become_unit_peaks_inside_the_head_alone():
    axes = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    head = torch.ones(1, *SIZE)
    head[:, 0] = 0
    found = HarmonicsToPeaksd("pred")({"pred": 3 * axis_to_harmonics(axes)[0], "head": head})["pred"]
    assert found[:, 0].isnan().all()
    unit = axes[0] / axes[0].norm(dim=0)
    cosine = (found * unit).sum(dim=0).abs()[1:]
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("lesion", -1.0),
        ("crossings", -1.0),
        ("orientation", math.nan),
        ("fod", math.nan),
        ("fractions", math.nan),
    ],
)
def test_voxels_outside_the_brain_mask_do_not_count(name, ignored):
    label, output = perfect(name)
    this, mask = find_task(name), torch.ones(1, *SIZE)
    mask[..., 0] = 0
    encode = Compose([IgnoreOutsided("label", this.outside), *_score_of_label(name)])
    stored = to_basis(label[0], "tournier07", legacy=False) if name == "fod" else label[0]
    masked = encode({"label": grid(stored), "mask": mask})["label"].as_tensor().unsqueeze(0)
    assert masked[..., 0].isnan().all() if ignored != ignored else (masked[..., 0] == ignored).all()
    loss, spoilt = objective(name)["loss"], output.clone()
    spoilt[..., 0] = -output[..., 0].roll(1, dims=-1) - 1
    torch.testing.assert_close(loss(spoilt, masked), loss(output, masked))


def test_mask_stored_in_another_orientation_than_the_label_is_refused():
    mirrored = torch.eye(4)
    mirrored[0, 0], mirrored[0, 3] = -1, SIZE[0] - 1.0  # the same brain, the other way round
    mask, label = grid(torch.ones(1, *SIZE), mirrored), grid(torch.ones(1, *SIZE))
    with pytest.raises(ValueError, match="IgnoreOutsided: 'mask' lies up to 3 mm beside the image"):
        IgnoreOutsided("label")({"label": label, "mask": mask})


def test_monitoring_the_loss_sees_the_output_before_it_is_discretised():
    label, output = perfect("tissue")
    chosen = Monitored("loss", objective("tissue"))
    data = Compose(chosen.postprocessing)({"pred": output[0], "label": label[0]})
    assert data["pred"].shape == data["label"].shape == (4, *SIZE)
    torch.testing.assert_close(data["raw_pred"], output[0])
    assert chosen.name == "val_loss"
    assert chosen.is_better(0.1, 0.2)
    assert chosen.sign == -1


def test_angular_error_is_better_when_smaller_and_dice_when_larger():
    small = Monitored("metric", objective("orientation"))
    large = Monitored("metric", objective("tissue"))
    assert small.is_better(5.0, 10.0)
    assert large.is_better(0.9, 0.8)
    assert not large.is_better(0.7, 0.8)


def test_unknown_monitor_names_the_choices():
    with pytest.raises(ValueError, match="monitor is 'dice', expected one of"):
        Monitored("dice", objective("tissue"))


def test_any_value_is_better_than_none():
    """A validation without a lesion has no average precision."""
    chosen = Monitored("metric", objective("lesion"))
    assert chosen.is_better(0.1, float("nan"))
    assert not chosen.is_better(float("nan"), 0.1)


@pytest.mark.parametrize("name", TASKS)
def test_prediction_is_made_ready_in_evaluation_as_in_inference(name):
    """The config shows the transforms, the package uses its own: they must be the same."""
    label, output = perfect(name)
    field = output[0]
    shown = objective(name)["activate"]
    one = Compose(shown if isinstance(shown, list) else [shown])({"pred": grid(field), "image": grid(field)})
    other = Compose(find_task(name).output.activate())({"pred": grid(field), "image": grid(field)})
    torch.testing.assert_close(one["pred"].as_tensor(), other["pred"].as_tensor(), equal_nan=True)


@pytest.mark.parametrize("config", ["train", "evaluate"])
def test_configs_hold_the_objective_of_tissue(config):
    configs = bundle_folder() / "configs"
    held = json.loads((configs / f"{config}.json").read_text(encoding="utf-8"))["objective"]
    assert held == json.loads((configs / "tasks" / "tissue.json").read_text(encoding="utf-8"))["objective"]
