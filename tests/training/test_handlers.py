import json
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer

from dmri_monai.inference.precision import autocast
from dmri_monai.training.handlers import EarlyStopping, StopAtNonFinite, ValidationPicture

NAN = float("nan")


def epochs(values, patience, sign=1.0):
    """How many epochs a training takes whose validations give `values`."""
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine):
        evaluator.state.metrics = {"value": values[engine.state.epoch - 1]}

    EarlyStopping(evaluator, "value", patience, sign=sign).attach(trainer)
    return trainer.run([0], max_epochs=len(values)).epoch


@pytest.mark.parametrize(
    ("values", "sign", "expected"),
    [
        ([1, 2, 3, 4, 5, 6], 1.0, 6),
        ([1, 2, 1, 2, 3, 4], 1.0, 4),
        ([6, 5, 4, 3, 2, 1], -1.0, 6),
        ([1, 2, 3, 4, 5, 6], -1.0, 3),
        ([1, NAN, NAN, NAN, NAN, NAN], 1.0, 3),
        ([NAN, NAN, NAN, NAN, NAN, NAN], 1.0, 3),
        ([NAN, 1, 2, 3, 4, 5], 1.0, 6),
    ],
    ids=["better", "plateau", "lower", "worse", "lost", "no-value", "late"],
)
def test_training_stops_after_two_validations_that_are_no_better(values, sign, expected):
    assert epochs(values, patience=2, sign=sign) == expected


def trainer_of(factor, accumulation_steps=1, amp=False):
    """MONAI trainer on two batches of two scans, and its network; the loss is the output times `factor`."""
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 1, 1)
    files = [["a.nii", "b.nii"], ["c.nii", "d.nii"]]
    batches = []
    for names in files:
        image = MetaTensor(torch.ones(2, 1, 4, 4, 4), meta={"filename_or_obj": names})
        batches.append({"image": image, "label": torch.ones(2, 1, 4, 4, 4)})
    factors = iter(factor)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=3,
        train_data_loader=batches,
        network=autocast(network, amp, torch.device("cpu")),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=lambda pred, label: (pred.float().mean() - 1).square() * next(factors),
        accumulation_steps=accumulation_steps,
        train_handlers=[StopAtNonFinite()],
    )
    return trainer, network


@pytest.mark.parametrize("value", [NAN, float("inf")], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"accumulation_steps": 2}, {"amp": True}], ids=["plain", "accumulated", "amp"]
)
def test_first_loss_that_is_not_finite_stops_before_a_weight_moves(value, options):
    trainer, network = trainer_of([1, 1, 1, value, 1, 1], **options)
    saved = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: saved.append(trainer.state.epoch))
    expected = (
        rf"the loss is {value} in epoch 2, iteration 4 for c.nii, d.nii; nothing of this epoch was saved"
    )
    with pytest.raises(FloatingPointError, match=expected):
        trainer.run()
    assert saved == [1]
    assert all(bool(p.isfinite().all()) for p in network.parameters())


def test_finite_losses_go_through():
    trainer, _ = trainer_of([1] * 6)
    trainer.run()
    assert trainer.state.epoch == 3


@pytest.mark.parametrize("config", ["train", "pretrain"])
def test_trainings_of_the_bundle_stop_at_losses_that_are_not_finite(config):
    path = Path(__file__).parents[2] / "bundle" / "configs" / f"{config}.json"
    handlers = json.loads(path.read_text(encoding="utf-8"))["train"]["handlers"]
    assert {"_target_": "dmri_monai.training.StopAtNonFinite"} in handlers


def volume(classes, one_hot):
    """A label or prediction of eight voxels, its first ones of `classes`, the others of the first of these."""
    numbers = torch.full((8,), classes[0])
    numbers[: len(classes)] = torch.tensor(classes)
    numbers = numbers.view(2, 2, 2)
    if not one_hot:
        return numbers[None].float()
    return torch.nn.functional.one_hot(numbers.clamp(min=0), 4).movedim(-1, 0).float()


def validations(found, true, tmp_path, one_hot=True, shows="classes"):
    """Validations of two scans each, whose predictions hold the classes `found[validation][scan]`."""
    outputs = iter(
        [{"image": torch.ones(1, 2, 2, 2), "label": volume(true, one_hot), "pred": volume(scan, one_hot)}]
        for scans in found
        for scan in scans
    )
    evaluator = Engine(lambda *_: next(outputs))
    ValidationPicture(tmp_path / "picture.png", shows).attach(evaluator)
    for _ in found:
        evaluator.run([0, 1], max_epochs=1)


NOTHING, SOME, OTHER = [[0], [0]], [[0], [0, 2]], [[1], [0]]


@pytest.mark.parametrize("one_hot", [True, False], ids=["one-hot", "numbers"])
def test_validations_that_find_one_class_alone_are_warned_of_once(tmp_path, caplog, one_hot):
    validations([NOTHING] * 5, [1, 0, 3], tmp_path, one_hot)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "predicted as class 0, the labels hold 0, 1, 3: " in record.message


@pytest.mark.parametrize(
    ("found", "true"),
    [
        ([NOTHING, SOME, NOTHING], [0, 1]),
        ([OTHER] * 3, [0, 1]),
        ([NOTHING] * 3, [0]),
    ],
    ids=["in-between", "another-in-each-scan", "no-other-in-the-labels"],
)
def test_what_is_no_failure_is_not_warned_of(tmp_path, caplog, found, true):
    validations(found, true, tmp_path)
    assert not caplog.records


def test_ignored_voxels_are_no_class_and_scores_no_classes(tmp_path, caplog):
    validations([NOTHING] * 3, [0, -1], tmp_path, one_hot=False)
    validations([NOTHING] * 3, [0, 1], tmp_path, one_hot=False, shows="scores")
    assert not caplog.records
