"""Every task, pretext and architecture by config keys alone, at tiny size."""

import shutil
from itertools import cycle

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from dmri_monai.inference.spec import TAKES, ModelSpec
from dmri_monai.io import read_dwi, write_dwi
from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.tasks import TASKS, find_task
from tests.small_models import save_model

PRETEXTS = ("artifacts", "autoencoder", "masked", "none")
# the diagonal runs every time, the rest in the full suite
FAST = set(zip(TASKS, cycle(PRETEXTS), strict=False))
COMBINATIONS = [
    pytest.param(t, p, marks=() if (t, p) in FAST else pytest.mark.slow, id=f"{t}-{p}")
    for t in TASKS
    for p in PRETEXTS
]
STEP = {"max_epochs": 1, "train_subjects": 1, "batch_size": 1, "crop_size": [16, 16, 16]}
KEY_METRICS = {
    "tissue": "dice",
    "lesion": "average_precision",
    "crossings": "macro_f1",
    "orientation": "angular_error",
    "fod": "density_correlation",
    "fractions": "fraction_error",
}
EQUIVARIANT = {"architecture": "equivariant", "size": "tiny", "network_options": {}}
WRITES = {task: find_task(task).label for task in TASKS}


@pytest.fixture(scope="module")
def bodies(prepare, dataset_dir, tmp_path_factory):
    """Function: pretext -> checkpoint of one step of pretraining."""
    made = {}

    def body(pretext):
        if pretext not in made:
            out = tmp_path_factory.mktemp(pretext)
            prepare("pretrain", dataset_dir=dataset_dir, output_dir=str(out), pretext=pretext, **STEP).run()
            made[pretext] = str(out / "model.pt")
        return made[pretext]

    return body


def validated(workflow):
    return workflow.parser.get_parsed_content("validate#evaluator").state.metrics


@pytest.mark.parametrize(("task", "pretext"), COMBINATIONS)
def test_task_trains_from_pretext_by_configs_alone(prepare, dataset_dir, bodies, tmp_path, task, pretext):
    out = {"dataset_dir": dataset_dir, "output_dir": str(tmp_path)}
    workflow = prepare("train", objective=task, pretrained=bodies(pretext), **out, **STEP)
    start = {k: v.clone() for k, v in workflow.parser.get_parsed_content("network").state_dict().items()}
    torch.testing.assert_close(
        start["down_2.0.0.weight"], torch.load(bodies(pretext))["down_2.0.0.weight"], rtol=0, atol=0
    )
    workflow.run()
    ((metric, value),) = validated(workflow).items()
    assert metric == f"val_{KEY_METRICS[task]}"
    assert np.isfinite(value)
    assert ModelSpec.load(tmp_path / "model.json").task == task
    moved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert any((moved[k] != v).any() for k, v in start.items())
    assert (tmp_path / "validation.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [a for a in TAKES if a not in ("plain", "invariants")])
@pytest.mark.parametrize("task", TASKS)
def test_every_architecture_trains_evaluates_and_infers(prepare, dataset_dir, tmp_path, task, architecture):
    model = {"architecture": architecture, "size": "tiny", "network_options": {}, "dataset_dir": dataset_dir}
    pretrained = str(tmp_path / "pretraining" / "model.pt")
    prepare("pretrain", output_dir=str(tmp_path / "pretraining"), pretext="masked", **model, **STEP).run()
    prepare(
        "train", output_dir=str(tmp_path / "t"), objective=task, pretrained=pretrained, **model, **STEP
    ).run()
    own = {"dataset_dir": dataset_dir, "checkpoint": str(tmp_path / "t" / "model.pt")}
    prepare("evaluate", output_dir=str(tmp_path / "e"), objective=task, **own).run()
    prepare("inference", output_dir=str(tmp_path / "i"), **own).run()
    assert (tmp_path / "e" / f"{KEY_METRICS[task]}_summary.csv").is_file()
    assert len(list((tmp_path / "i").glob(f"*_{WRITES[task]}.nii.gz"))) == 5


@pytest.mark.slow
@pytest.mark.parametrize("task", ["tissue", "fractions", "lesion", "crossings"])
def test_network_on_invariants_trains_evaluates_and_infers(prepare, dataset_dir, tmp_path, task):
    model = {"architecture": "invariants", "size": "tiny", "network_options": {}, "dataset_dir": dataset_dir}
    two = {**STEP, "crops_per_scan": 2}  # of 16 voxels each: batch norm needs more than one value per channel
    prepare("train", output_dir=str(tmp_path / "t"), objective=task, **model, **two).run()
    own = {"dataset_dir": dataset_dir, "checkpoint": str(tmp_path / "t" / "model.pt")}
    prepare("evaluate", output_dir=str(tmp_path / "e"), objective=task, **own).run()
    prepare("inference", output_dir=str(tmp_path / "i"), **own).run()
    assert (tmp_path / "e" / f"{KEY_METRICS[task]}_summary.csv").is_file()
    assert len(list((tmp_path / "i").glob(f"*_{WRITES[task]}.nii.gz"))) == 5


@pytest.fixture(scope="module")
def for_any_protocol(prepare, dataset_dir, tmp_path_factory):
    """Function: task -> checkpoint of a network for any protocol, pretrained, trained in bf16 and resumed."""
    home, made = tmp_path_factory.mktemp("any"), {}
    model = {
        "architecture": "any",
        "size": "tiny",
        "shells": [700.0],
        "dataset_dir": dataset_dir,
    }  # of no meaning

    def train(task):
        if not made:
            first = {
                "network_options": {"channels": 4, "hidden": 8},
                "pretext": "artifacts",
                "drop_shells": 0.5,
            }
            prepare("pretrain", output_dir=str(home / "pretraining"), **first, **model, **STEP).run()
        if task not in made:
            options = {"channels": 4, "hidden": 8, "deep_supervision": True}
            more = {
                "network_options": options,
                "pretrained": str(home / "pretraining" / "model.pt"),
                "amp": True,
            }
            more |= {"output_dir": str(home / task), "subsample_directions": [8, 20]}
            prepare("train", objective=task, **more, **model, **STEP).run()
            again = {**STEP, "max_epochs": 2, "resume": True}
            prepare("train", objective=task, **more, **model, **again).run()
            made[task] = home / task / "model.pt"
        return made[task]

    return train


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=() if t == "fod" else pytest.mark.slow) for t in TASKS]
)
def test_network_for_any_protocol_goes_the_whole_way(prepare, dataset_dir, tmp_path, for_any_protocol, task):
    """Pretraining, fine-tuning with supervision of all levels in bf16, resume, evaluation, inference in windows."""
    checkpoint = for_any_protocol(task)
    pretrained = torch.load(checkpoint.parents[1] / "pretraining" / "model.pt", weights_only=True)
    trained = torch.load(checkpoint, weights_only=True)
    assert {n for n in trained if not n.startswith("head.")} == {
        n for n in pretrained if not n.startswith("head.")
    }
    assert torch.load(checkpoint.with_name("last.pt"), weights_only=True)["trainer"]["epoch"] == 2
    own = {"dataset_dir": dataset_dir, "checkpoint": str(checkpoint)}
    prepare("evaluate", output_dir=str(tmp_path / "e"), objective=task, **own).run()
    assert (tmp_path / "e" / f"{KEY_METRICS[task]}_summary.csv").is_file()
    own["dataset_dir"] = f"{dataset_dir}/sub-01/dwi/sub-01_dwi.nii.gz"
    prepare("inference", output_dir=str(tmp_path / "i"), window=[20, 16, 20], **own).run()
    assert (tmp_path / "i" / f"sub-01_{WRITES[task]}.nii.gz").is_file()
    assert "Deviation of windows" in (tmp_path / "i" / "report.html").read_text()


# one task of a field of directions, one of classes; the rest in the full suite
@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=() if t in ("tissue", "fod") else pytest.mark.slow) for t in TASKS]
)
def test_deep_supervision_trains_the_heads_of_all_levels(prepare, dataset_dir, tmp_path, task):
    model = {**EQUIVARIANT, "network_options": {"deep_supervision": True}}
    own = {"dataset_dir": dataset_dir, "output_dir": str(tmp_path / "t")}
    workflow = prepare("train", objective=task, **own, **model, **STEP)
    start = {k: v.clone() for k, v in workflow.parser.get_parsed_content("network").state_dict().items()}
    workflow.run()
    moved = torch.load(tmp_path / "t" / "model.pt", weights_only=True)
    heads = [name for name in start if name.startswith("head.") and "weight" in name]
    assert len(heads) > 1
    assert all((moved[name] != start[name]).any() for name in heads)
    own |= {"checkpoint": str(tmp_path / "t" / "model.pt"), "output_dir": str(tmp_path / "e")}
    prepare("evaluate", objective=task, shuffled=None, kmeans=None, **own).run()
    assert (tmp_path / "e" / "metrics.csv").is_file()


@pytest.fixture(scope="module")
def oriented(prepare, dataset_dir, tmp_path_factory):
    """Checkpoint of a tiny equivariant network for directions."""
    out = tmp_path_factory.mktemp("orientation")
    prepare(
        "train", dataset_dir=dataset_dir, output_dir=str(out), objective="orientation", **EQUIVARIANT, **STEP
    ).run()
    return str(out / "model.pt")


def infer_peaks(prepare, scan, checkpoint, out):
    """Peaks of a scan with the model's own voxel size, which no interpolation changes."""
    prepare("inference", dataset_dir=str(scan), checkpoint=checkpoint, output_dir=str(out)).run()
    (path,) = out.glob("*_peaks.nii.gz")
    return nibabel.load(path)


def test_peaks_of_a_scan_stored_otherwise_are_the_same_in_the_world(prepare, dataset_dir, oriented, tmp_path):
    """Arrays turned and mirrored with their affine, the table in its own file: the same scan to any reader."""
    source = f"{dataset_dir}/sub-01/dwi/sub-01_dwi"
    scan = nibabel.load(f"{source}.nii.gz")
    codes = nibabel.orientations.axcodes2ornt("PIL")
    stored = scan.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.io_orientation(scan.affine), codes)
    )
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    nibabel.save(stored, second / "sub-01_dwi.nii.gz")
    write_table(source, scan.affine, stored.affine, second / "sub-01_dwi")
    peaks = infer_peaks(prepare, f"{source}.nii.gz", oriented, first)
    turned = infer_peaks(prepare, second / "sub-01_dwi.nii.gz", oriented, second / "out")
    np.testing.assert_allclose(turned.affine, stored.affine, atol=1e-4)
    back = turned.as_reoriented(
        nibabel.orientations.ornt_transform(codes, nibabel.io_orientation(scan.affine))
    )
    cosine = np.abs((peaks.get_fdata() * back.get_fdata()).sum(-1))
    assert np.isfinite(cosine).sum() > 1000
    assert np.nanpercentile(cosine, 1) > 0.999


def test_report_of_inferred_directions_draws_them_beside_the_truth(prepare, dataset_dir, oriented, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    for name in ("sub-01", "derivatives", "dataset_description.json"):
        (one / name).symlink_to(f"{dataset_dir}/{name}")
    infer_peaks(prepare, one, oriented, tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    for title in ("tensor&#39;s direction", "prediction", "ground truth"):
        assert html.count(f": {title} as sticks (red left-right") == 3, title  # planes
    assert html.count("Median angle") == 2  # the case's, and the head of the table of all


def write_table(source, affine, stored_affine, target):
    """FSL table of the same world directions for the array axes of `stored_affine`."""
    from dmri_monai.gradients import GradientTable

    bvals, bvecs = (np.loadtxt(f"{source}.{kind}") for kind in ("bval", "bvec"))
    table = GradientTable.from_fsl(torch.tensor(bvals), torch.tensor(bvecs.T), torch.tensor(affine))
    np.savetxt(f"{target}.bval", bvals[None])
    np.savetxt(f"{target}.bvec", table.to_fsl(torch.tensor(stored_affine)).numpy().T)


def test_ensemble_and_windows_are_written_and_reported(prepare, dataset_dir, trained, tmp_path):
    own = {
        "dataset_dir": f"{dataset_dir}/sub-01/dwi/sub-01_dwi.nii.gz",
        "checkpoint": str(trained / "model.pt"),
    }
    prepare("inference", output_dir=str(tmp_path), ensemble="flips", window=[16, 16, 16], **own).run()
    spread = nibabel.load(tmp_path / "sub-01_dseguncertainty.nii.gz")
    scan = nibabel.load(own["dataset_dir"])
    np.testing.assert_array_equal(spread.affine, scan.affine)
    assert spread.shape == scan.shape[:3]
    assert 0 < spread.get_fdata().max() <= 1
    report = (tmp_path / "report.html").read_text()
    assert "Uncertainty" in report
    assert "Deviation of windows" in report


def test_accumulated_gradients_are_those_of_the_larger_batch(prepare, dataset_dir, tmp_path):
    common = {"dataset_dir": dataset_dir, "max_epochs": 1, "train_subjects": 2}
    common["optimizer"] = {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.5}
    ends = []
    for name, batch, steps in (("batch", 2, 1), ("steps", 1, 2), ("single", 1, 1)):
        out = tmp_path / name
        settings = {**common, "batch_size": batch, "accumulation_steps": steps}
        prepare("train", objective="crossings", output_dir=str(out), **settings).run()
        ends.append(torch.load(out / "model.pt", weights_only=True))
    batch, steps, single = (torch.cat([p.flatten() for p in end.values()]) for end in ends)
    assert (single - batch).abs().max() > 1e-3
    # how far float32 sums differ depends on the CPU
    assert (steps - batch).abs().max() < 0.01 * (single - batch).abs().max()


def test_one_training_may_use_bf16_frozen_epochs_rates_and_thin_tables_together(
    prepare, dataset_dir, tmp_path
):
    settings = {"amp": True, "frozen_epochs": 1, "learning_rates": {"head.": 0.01}, "missing": "zero"}
    settings |= {"subsample_directions": [16, 24], "drop_shells": 0.5, "monitor": "loss"}
    settings |= {"insufficient_directions": "zero"}
    workflow = prepare("train", dataset_dir=dataset_dir, output_dir=str(tmp_path), **settings, **STEP)
    network = workflow.parser.get_parsed_content("network")
    body = network.bridge[0][0].weight.detach().clone()
    workflow.run()
    torch.testing.assert_close(network.bridge[0][0].weight.detach(), body, rtol=0, atol=0)
    assert np.isfinite(validated(workflow)["val_loss"])
    own = {"dataset_dir": dataset_dir, "checkpoint": str(tmp_path / "model.pt"), "subsample_directions": 12}
    prepare("evaluate", output_dir=str(tmp_path / "twelve"), **own).run()
    assert (tmp_path / "twelve" / "dice_summary.csv").is_file()


def test_too_few_directions_are_an_error_without_such_training(prepare, dataset_dir, trained, tmp_path):
    own = {"dataset_dir": dataset_dir, "checkpoint": str(trained / "model.pt"), "subsample_directions": 12}
    with pytest.raises(RuntimeError) as error:
        prepare("evaluate", output_dir=str(tmp_path), **own).run()
    assert "12 directions determine harmonics up to order 2; l_max = 4 needs at least 15" in chain(
        error.value
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": None, "objective#task": "tisue"}, "task is 'tisue': expected one of tissue, lesion"),
        (
            {"architecture": "unet"},
            "architecture is 'unet': Input should be 'any', 'invariants', 'equivariant'",
        ),
        ({"monitor": "metrics"}, "monitor is 'metrics', expected one of ('metric', 'loss')"),
        ({"masked": "yes"}, "masked is 'yes', expected true or false"),
        ({"fold": 9}, "fold is 9, expected 0 to"),
    ],
    ids=["objective", "architecture", "monitor", "masked", "fold"],
)
def test_wrong_word_in_a_config_is_named(prepare, dataset_dir, tmp_path, settings, message):
    settings = {"n_folds": 5, **settings}
    with pytest.raises(Exception) as error:  # noqa: PT011  MONAI wraps what its expressions raise
        prepare("train", dataset_dir=dataset_dir, output_dir=str(tmp_path), **settings).run()
    assert message in chain(error.value)


@pytest.mark.parametrize("config", ["train", "pretrain"])
def test_shells_without_an_architecture_that_has_named_ones_are_refused(
    bundle, dataset_dir, tmp_path, config
):
    own = {
        "bundle_root": str(bundle),
        "dataset_dir": dataset_dir,
        "output_dir": str(tmp_path),
        "mlflow": False,
    }

    def prepared(**settings):
        file = str(bundle / "configs" / f"{config}.json")
        made = ConfigWorkflow(
            file, workflow_type="train", logging_file=False, device="cpu", **own, **settings
        )
        made.initialize()
        return made.parser.get_parsed_content("model")

    with pytest.raises(Exception) as error:  # noqa: PT011  MONAI wraps what its expressions raise
        prepared(shells=[1000])
    assert "shells is set, but the default architecture 'any' takes the shells" in chain(error.value)
    assert prepared().architecture == "any"
    assert prepared(shells=[1000], architecture="equivariant").shells == (1000.0,)


def test_evaluation_keeps_the_body_as_predictions_do(prepare, dataset_dir, tmp_path):
    tables = []
    for name, depth in (("kept", 12.0), ("again", 12.0), ("whole", None)):
        model = save_model(tmp_path / f"{name}.pt", body_mm=depth, architecture="plain")
        own = {"dataset_dir": dataset_dir, "checkpoint": str(model), "output_dir": str(tmp_path / name)}
        prepare("evaluate", shuffled=None, kmeans=None, **own).run()
        tables.append((tmp_path / name / "dice.csv").read_text())
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def test_evaluation_fills_an_extracted_brain_as_predictions_do(prepare, dataset_dir, tmp_path):
    """Air of these heads is 0 and the network leaves few voxels, so every one with signal is told to be tissue."""
    folder = tmp_path / "extracted"
    shutil.copytree(dataset_dir, folder)
    for path in folder.rglob("*_dwi.nii.gz"):
        image, table = read_dwi(path)
        head = head_mask(mean_b0(image.as_tensor(), table.bvals))
        write_dwi(path, image * head, table)
    tables = []
    for name, fills in (("fills", 0.5), ("again", 0.5), ("leaves", None)):
        model = save_model(tmp_path / f"{name}.pt", fill_extracted=fills, architecture="plain")
        own = {"dataset_dir": str(folder), "checkpoint": str(model), "output_dir": str(tmp_path / name)}
        prepare("evaluate", shuffled=None, kmeans=None, **own).run()
        tables.append((tmp_path / name / "dice.csv").read_text())
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def chain(error):
    """Messages of an exception and all its causes."""
    return f"{error} {chain(error.__cause__ or error.__context__)}" if error else ""
