import hashlib
import os

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.weights import load_weights
from dmri_monai.networks import EquivariantUNet, PlainUNet
from dmri_monai.training.checkpoint import Checkpoint, load_pretrained
from dmri_monai.training.handlers import EarlyStopping

SPEC = ModelSpec(task="tissue", architecture="plain", l_max=2, order_scale=(1.0, 15.0))


def make(folder, **options):
    torch.manual_seed(0)
    network = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)

    def step(engine, batch):
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()

    engine = Engine(step)
    options = {"spec": SPEC, **options}
    checkpoint = Checkpoint(folder, network, {"optimizer": optimizer}, **options)
    checkpoint.attach(engine)
    return engine, network


DATA = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])]


def test_resumed_training_ends_like_an_uninterrupted_one(tmp_path):
    engine, network = make(tmp_path / "whole")
    engine.run(DATA, max_epochs=4)
    make(tmp_path / "cut")[0].run(DATA, max_epochs=2)
    resumed, again = make(tmp_path / "cut", resume=True)
    resumed.run(DATA, max_epochs=4)
    assert resumed.state.iteration == engine.state.iteration
    torch.testing.assert_close(again.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_training_from_scratch_differs_from_a_resumed_one(tmp_path):
    make(tmp_path)[0].run(DATA, max_epochs=2)
    resumed, network = make(tmp_path, resume=True)
    resumed.run(DATA, max_epochs=4)
    scratch, other = make(tmp_path / "other")
    scratch.run(DATA, max_epochs=2)
    assert (network.weight - other.weight).abs().max() > 1e-3


def test_resuming_a_finished_training_changes_nothing(tmp_path):
    engine, network = make(tmp_path)
    engine.run(DATA, max_epochs=2)
    resumed, again = make(tmp_path, resume=True)
    resumed.run(DATA, max_epochs=2)
    torch.testing.assert_close(again.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_full_disk_names_the_file_and_leaves_the_last_epoch(tmp_path, full_disk):
    make(tmp_path)[0].run(DATA, max_epochs=1)
    names, last = sorted(tmp_path.iterdir()), (tmp_path / "last.pt").read_bytes()
    resumed, _ = make(tmp_path, resume=True)
    with full_disk, pytest.raises(OSError, match=r"last\.pt"):
        resumed.run(DATA, max_epochs=2)
    assert sorted(tmp_path.iterdir()) == names
    assert (tmp_path / "last.pt").read_bytes() == last


def test_checkpoints_load_with_weights_only(tmp_path):
    make(tmp_path)[0].run(DATA, max_epochs=1)
    assert set(torch.load(tmp_path / "last.pt", weights_only=True)) == {"network", "optimizer", "trainer"}
    assert set(torch.load(tmp_path / "model.pt", weights_only=True)) == {"weight", "bias"}


def test_existing_training_is_not_overwritten(tmp_path):
    make(tmp_path)[0].run(DATA, max_epochs=1)
    with pytest.raises(ValueError, match="last.pt exists: continue that training with `--resume true`"):
        make(tmp_path)
    make(tmp_path, overwrite=True)[0].run(DATA, max_epochs=1)


def test_resume_without_a_checkpoint_names_the_file(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint .*last.pt"):
        make(tmp_path, resume=True)


def test_resume_with_other_data_names_both_lengths(tmp_path):
    make(tmp_path)[0].run(DATA, max_epochs=1)
    engine, _ = make(tmp_path, resume=True)
    with pytest.raises(ValueError, match="has 2 iterations, now 4"):
        engine.run(DATA * 2, max_epochs=2)


def test_resume_under_other_settings_names_both(tmp_path):
    make(tmp_path)[0].run(DATA, max_epochs=1)
    engine, _ = make(tmp_path, resume=True, spec=SPEC.replace(order_scale=(1.0, 1.0)))
    expected = r"made with order_scale = \(1.0, 15.0\), the configuration says \(1.0, 1.0\)"
    with pytest.raises(ValueError, match=expected):
        engine.run(DATA, max_epochs=2)


def test_resume_with_another_number_of_slots_names_both(tmp_path):
    spec = ModelSpec()
    make(tmp_path, spec=spec)[0].run(DATA, max_epochs=1)
    engine, _ = make(tmp_path, resume=True, spec=spec.replace(slots=5))
    with pytest.raises(ValueError, match="made with slots = 4, the configuration says 5"):
        engine.run(DATA, max_epochs=2)
    engine, _ = make(tmp_path, resume=True, spec=ModelSpec(architecture="equivariant"))
    with pytest.raises(
        ValueError, match="made with architecture = 'any', the configuration says 'equivariant'"
    ):
        engine.run(DATA, max_epochs=2)


INPUTS = {"settings": {"seed": 0, "learning_rate": 0.1}, "scans": {"train 0 table a.bvec": "SHA-256 12"}}


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        ("settings", {"seed": 1}, "with the setting seed: 0, this run has 1;"),
        ("settings", {"seed": 1, "learning_rate": 1.0}, r"this run has 1 \(1 more differ\)"),
        ("settings", {"amp": True}, "with the setting amp: nothing, this run has True"),
        (
            "scans",
            {"train 0 table a.bvec": "SHA-256 34"},
            "table a.bvec: 'SHA-256 12', this run has 'SHA-256 34'",
        ),
    ],
    ids=["seed", "several", "new", "table"],
)
def test_resume_with_other_inputs_names_both_values(tmp_path, kind, change, expected):
    make(tmp_path, inputs=INPUTS)[0].run(DATA, max_epochs=1)
    inputs = {**INPUTS, kind: {**INPUTS[kind], **change}}
    engine, network = make(tmp_path, resume=True, inputs=inputs)
    before = network.weight.clone()
    with pytest.raises(ValueError, match=rf"resume: {tmp_path}/last.pt was trained .*{expected}"):
        engine.run(DATA, max_epochs=2)
    torch.testing.assert_close(network.weight, before, rtol=0, atol=0)


def test_resume_with_the_same_inputs_goes_on(tmp_path):
    make(tmp_path, inputs=INPUTS)[0].run(DATA, max_epochs=1)
    engine, _ = make(tmp_path, resume=True, inputs=INPUTS)
    engine.run(DATA, max_epochs=2)
    assert engine.state.epoch == 2


def test_resume_of_a_training_without_a_record_of_its_inputs_is_warned_of(tmp_path, caplog):
    make(tmp_path)[0].run(DATA, max_epochs=1)
    make(tmp_path, resume=True, inputs=INPUTS)[0].run(DATA, max_epochs=2)
    assert "last.pt does not say with which settings and scans it was trained" in caplog.text


@pytest.mark.parametrize("left", [0, 100, 0.5, 0.99], ids=["empty", "100-bytes", "half", "end-missing"])
def test_torn_last_epoch_is_named_with_the_way_on(tmp_path, left):
    make(tmp_path)[0].run(DATA, max_epochs=1)
    last, model = tmp_path / "last.pt", (tmp_path / "model.pt").read_bytes()
    os.truncate(last, left if isinstance(left, int) else int(left * last.stat().st_size))
    expected = (
        rf"resume: {last} cannot be read .*begin anew with `--overwrite true`; .*model.pt are not affected"
    )
    with pytest.raises(ValueError, match=expected):
        make(tmp_path, resume=True)[0].run(DATA, max_epochs=2)
    assert (tmp_path / "model.pt").read_bytes() == model


def test_last_epoch_of_something_else_is_named_with_what_it_lacks(tmp_path):
    make(tmp_path)[0].run(DATA, max_epochs=1)
    (tmp_path / "last.pt").write_bytes((tmp_path / "model.pt").read_bytes())
    with pytest.raises(ValueError, match=r"last.pt has no 'network', it is not of such a training"):
        make(tmp_path, resume=True)[0].run(DATA, max_epochs=2)


def test_torn_description_is_named_and_written_anew_once_it_is_deleted(tmp_path):
    make(tmp_path)[0].run(DATA, max_epochs=1)
    record = tmp_path / "model.json"
    whole = ModelSpec.load(record)
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"resume: {record} does not describe a model.*; delete {record}"):
        make(tmp_path, resume=True)[0].run(DATA, max_epochs=1)
    record.unlink()
    make(tmp_path, resume=True)[0].run(DATA, max_epochs=1)
    assert ModelSpec.load(record) == whole


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    engine, network = make(tmp_path)
    engine.run(DATA, max_epochs=1)
    last = (tmp_path / "last.pt").read_bytes()
    resumed, network = make(tmp_path, resume=True)

    @resumed.on(Events.ITERATION_COMPLETED(once=4))
    def spoil():
        network.weight.data.fill_(torch.nan)

    with pytest.raises(
        ValueError, match=r"2 of 2 weights of weight are not finite: epoch 2 is not saved to .*last.pt"
    ):
        resumed.run(DATA, max_epochs=3)
    assert (tmp_path / "last.pt").read_bytes() == last


def test_second_training_in_a_folder_is_refused_while_the_first_runs(tmp_path):
    first, _ = make(tmp_path)
    second, _ = make(tmp_path)
    third, _ = make(tmp_path)

    @first.on(Events.EPOCH_COMPLETED)
    def intrude():
        with pytest.raises(
            BlockingIOError, match=f"{tmp_path} is in use by a training: process {os.getpid()} on"
        ):
            second.run(DATA, max_epochs=1)

    first.run(DATA, max_epochs=1)
    assert first.state.epoch == 1
    with pytest.raises(ValueError, match="last.pt exists: continue that training"):
        third.run(DATA, max_epochs=1)
    assert not list(tmp_path.glob(".*"))


def test_folder_is_free_again_after_an_error(tmp_path):
    engine, _ = make(tmp_path)

    @engine.on(Events.ITERATION_COMPLETED(once=3))
    def fail():
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        engine.run(DATA, max_epochs=3)
    make(tmp_path, resume=True)[0].run(DATA, max_epochs=2)


@pytest.fixture
def pretrained(tmp_path):
    torch.manual_seed(1)
    body = PlainUNet(in_channels=2, filters=2, out_channels=2)
    torch.save(body.state_dict(), tmp_path / "pretrained.pt")
    return body, tmp_path / "pretrained.pt"


def test_pretrained_body_is_loaded_and_the_head_is_new(pretrained):
    body, path = pretrained
    network = PlainUNet(in_channels=2, filters=2, out_channels=4)
    head = network.head.weight.clone()
    load_pretrained(network, path)
    torch.testing.assert_close(network.bridge[0][0].weight, body.bridge[0][0].weight, rtol=0, atol=0)
    torch.testing.assert_close(network.head.weight, head, rtol=0, atol=0)


def test_no_pretrained_checkpoint_leaves_the_network_alone():
    network = PlainUNet(in_channels=2, filters=2)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    torch.testing.assert_close(load_pretrained(network, None).state_dict(), before, rtol=0, atol=0)


def test_checkpoint_of_another_width_names_both_shapes(pretrained):
    with pytest.raises(
        ValueError, match=r"down_1.0.0.weight: network \(3, 2, 3, 3, 3\), checkpoint \(2, 2, 3, 3, 3\)"
    ):
        load_pretrained(PlainUNet(in_channels=2, filters=3, out_channels=2), pretrained[1])


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint .*nowhere.pt"):
        load_pretrained(nn.Linear(1, 1), tmp_path / "nowhere.pt")


NO_CHECKPOINTS = {
    "text": (lambda path: path.write_bytes(b"hello"), "cannot be read as a checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as a checkpoint"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:500]), "cannot be read as a checkpoint"),
    "module": (lambda path: torch.save(nn.Linear(1, 1), path), "cannot be read as a checkpoint"),
    "tensor": (lambda path: torch.save(torch.zeros(3), path), "holds no state dict of tensors"),
    "other": (lambda path: torch.save({"epoch": 3}, path), "holds no state dict of tensors"),
}


@pytest.mark.parametrize(("spoil", "message"), NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS.keys())
@pytest.mark.parametrize("load", [load_weights, load_pretrained])
def test_file_that_is_no_checkpoint_is_named(pretrained, load, spoil, message):
    body, path = pretrained
    spoil(path)
    with pytest.raises(ValueError, match=f"pretrained.pt {message}"):
        load(body, path)


def test_load_weights_needs_the_head_too(pretrained):
    with pytest.raises(
        ValueError, match=r"head.weight: network \(4, 2, 1, 1, 1\), checkpoint \(2, 2, 1, 1, 1\)"
    ):
        load_weights(PlainUNet(in_channels=2, filters=2, out_channels=4), pretrained[1])


@pytest.fixture
def described(pretrained):
    """Checkpoint with the settings it was made with beside it."""
    body, path = pretrained
    SPEC.save(path.with_suffix(".json"))
    return body, path


@pytest.mark.parametrize(
    ("name", "ours", "message"),
    [
        ("l_max", 0, "made with l_max = 2, the configuration says 0"),
        (
            "order_scale",
            (1.0, 1.0),
            r"made with order_scale = \(1.0, 15.0\), the configuration says \(1.0, 1.0\)",
        ),
        ("architecture", "pq", "made with architecture = 'plain', the configuration says 'pq'"),
        (
            "shells",
            (1000.0, 2000.0),
            r"made with shells = \[1000.0\], the configuration says \[1000.0, 2000.0\]",
        ),
    ],
    ids=["order", "scale", "architecture", "shells"],
)
@pytest.mark.parametrize("load", [load_weights, load_pretrained])
def test_checkpoint_made_under_other_settings_is_refused_with_both(described, load, name, ours, message):
    body, path = described
    with pytest.raises(ValueError, match=message):
        load(
            body, path, SPEC.replace(**{"order_scale": None, name: ours} if name == "l_max" else {name: ours})
        )


def test_checkpoint_of_another_task_is_a_start_but_not_a_model(described):
    body, path = described
    load_pretrained(body, path, SPEC.replace(task="lesion"))
    with pytest.raises(ValueError, match="made with task = 'tissue', the configuration says 'lesion'"):
        load_weights(body, path, SPEC.replace(task="lesion"))


@pytest.mark.parametrize("change", [{"deep_supervision": True}, {"own_statistics": 0.25, "outside": 3}])
def test_what_does_not_change_the_body_may_begin_at_fine_tuning(described, change):
    body, path = described
    options = {"filters": 2}
    SPEC.replace(network_options=options).save(path.with_suffix(".json"))
    other = SPEC.replace(network_options={**options, **change})
    load_pretrained(body, path, other)
    with pytest.raises(ValueError, match=f"the configuration says {{'filters': 2, '{next(iter(change))}': "):
        load_weights(body, path, other)
    with pytest.raises(
        ValueError, match="made with network_options = {'filters': 2}, the configuration says {'filters': 3}"
    ):
        load_pretrained(body, path, SPEC.replace(network_options={"filters": 3}))


def test_other_b_values_are_warned_of(described, caplog):
    body, path = described
    load_weights(body, path, SPEC.replace(shells=(1200.0,)))
    assert "made with shells [1000.0], the configuration has [1200.0]" in caplog.text


def test_settings_are_written_beside_the_model(tmp_path):
    make(tmp_path)[0].run(DATA, max_epochs=1)
    written = ModelSpec.load(tmp_path / "model.json")
    assert written.replace(sha256=None) == SPEC
    assert written.sha256 == hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()


def test_checkpoint_of_another_network_names_both(pretrained):
    network = EquivariantUNet("2x0e", "1x0e", "tiny")
    expected = (
        "does not fit the EquivariantUNet in .* checkpoint missing; the checkpoint holds down_1, down_2"
    )
    with pytest.raises(ValueError, match=expected):
        load_pretrained(network, pretrained[1])


def test_what_was_loaded_and_what_was_not_is_listed(pretrained, caplog):
    caplog.set_level("INFO")
    load_pretrained(PlainUNet(in_channels=2, filters=2, out_channels=4), pretrained[1])
    assert "(bridge, down_1, down_2" in caplog.text
    assert "new: head.bias, head.weight; left in the checkpoint: head.bias, head.weight" in caplog.text


def make_stopping(folder, values, patience=2, **options):
    """A training whose validations give `values`, epoch by epoch, and better ones ever after; model.pt is the best."""
    engine, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
    torch.manual_seed(0)
    network = nn.Linear(2, 1)
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = float("-inf"), -1

    @engine.on(Events.EPOCH_COMPLETED)
    def validate(trainer):
        epoch = trainer.state.epoch
        with torch.no_grad():
            network.weight += 1  # what a training does
        value = values[epoch - 1] if epoch <= len(values) else 100.0 + epoch
        evaluator.state.metrics = {"value": value}
        if value > evaluator.state.best_metric:
            evaluator.state.best_metric, evaluator.state.best_metric_epoch = value, epoch

    stopping = EarlyStopping(evaluator, "value", patience)
    stopping.attach(engine)
    options = {"spec": SPEC, "evaluator": evaluator, **options}
    Checkpoint(folder, network, {"early_stopping": stopping}, **options).attach(engine)
    return engine


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".pt", ".json")}


@pytest.mark.parametrize("max_epochs", [8, 20])
def test_a_training_that_early_stopping_ended_is_finished(tmp_path, caplog, max_epochs):
    make_stopping(tmp_path, [1.0, 3.0, 2.0, 2.0]).run(DATA, max_epochs=8)
    before = written(tmp_path)
    completed = []
    for _ in range(2):
        engine = make_stopping(tmp_path, [1.0, 3.0, 2.0, 2.0], resume=True)
        engine.add_event_handler(Events.COMPLETED, lambda e: completed.append(e.state.epoch))
        engine.run(DATA, max_epochs=max_epochs)
    assert completed == [4, 4]
    assert written(tmp_path) == before
    assert "early stopping has ended this training after 2 validations without improvement" in caplog.text


def test_more_patience_goes_on_after_early_stopping(tmp_path, caplog):
    make_stopping(tmp_path, [1.0, 3.0, 2.0, 2.0]).run(DATA, max_epochs=8)
    engine = make_stopping(tmp_path, [1.0, 3.0, 2.0, 2.0, 2.0], patience=4, resume=True)
    engine.run(DATA, max_epochs=8)
    assert engine.state.epoch == 8
    assert "has ended" not in caplog.text


def test_less_patience_counts_from_the_next_validation_on(tmp_path, caplog):
    make_stopping(tmp_path, [1.0, 3.0, 2.0, 2.0], patience=5).run(DATA, max_epochs=4)
    engine = make_stopping(tmp_path, [1.0, 3.0, 2.0, 2.0, 2.0], patience=2, resume=True)
    engine.run(DATA, max_epochs=8)
    assert engine.state.epoch == 5
    assert "has ended" not in caplog.text


def test_last_epoch_that_does_not_say_whether_it_was_the_end_counts_as_one(tmp_path):
    """As 0.1 wrote it."""
    make_stopping(tmp_path, [1.0, 3.0, 2.0, 2.0]).run(DATA, max_epochs=8)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    del state["early_stopping"]["ended"]
    torch.save(state, tmp_path / "last.pt")
    engine = make_stopping(tmp_path, [1.0, 3.0, 2.0, 2.0], resume=True)
    engine.run(DATA, max_epochs=8)
    assert engine.state.epoch == 4
