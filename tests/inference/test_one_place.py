"""A new setting of a model is one new field of its description: everything else follows."""

import json
from typing import Annotated

import pytest
import torch
from monai.bundle import ConfigWorkflow

from dmri_monai.inference.architectures import build_network
from dmri_monai.inference.model import load_model
from dmri_monai.inference.released import bundle_folder
from dmri_monai.inference.spec import MEANING, ModelSpec
from dmri_monai.inference.weights import load_weights, save_model
from dmri_monai.integrations.bundle_export import export_bundle
from dmri_monai.scan import Scan
from dmri_monai.training.checkpoint import Checkpoint

# where the class is looked up by its name: not one of them names a field that they would have to learn
USERS = ("bundle_config", "model", "weights")


class Extended(ModelSpec):
    """The description with two more settings, of which the second says what the channels mean."""

    echo_time_ms: float = 80.0
    signal_scale: Annotated[float, MEANING] = 1.0


@pytest.fixture
def extended(monkeypatch):
    for module in USERS:
        monkeypatch.setattr(f"dmri_monai.inference.{module}.ModelSpec", Extended)
    monkeypatch.setattr("dmri_monai.inference.ModelSpec", Extended, raising=False)


@pytest.fixture
def own(tmp_path, extended):
    """A small model with a value of the new setting that is not the default."""
    settings = {"task": "tissue", "architecture": "plain", "network_options": {"filters": 4}}
    spec = Extended(**settings, spacing_mm=(6.0, 6.0, 6.0), echo_time_ms=95.0)
    save_model(build_network(spec), tmp_path / "model.pt", spec)
    return tmp_path / "model.pt"


def test_setting_stands_in_the_file_beside_the_weights(own):
    assert json.loads(own.with_suffix(".json").read_text())["echo_time_ms"] == 95
    assert Extended.load(own.with_suffix(".json")).echo_time_ms == 95
    with pytest.raises(ValueError, match="echo_time_ms"):  # the control: without the field it is unknown
        ModelSpec.load(own.with_suffix(".json"))


def test_wrong_value_of_the_setting_is_refused_by_file_and_name(own):
    content = Extended.load(own.with_suffix(".json")).model_dump(mode="json")
    own.with_suffix(".json").write_text(json.dumps({**content, "echo_time_ms": "$1"}))
    with pytest.raises(ValueError, match=r"echo_time_ms begins with '\$'.*model\.json"):
        Extended.load(own.with_suffix(".json"))


def test_only_a_setting_marked_so_gives_the_weights_another_meaning(own):
    spec = Extended.load(own.with_suffix(".json"))
    load_weights(build_network(spec), own, spec.replace(echo_time_ms=60.0))
    with pytest.raises(ValueError, match=r"signal_scale .*1\.0.*2\.0"):
        load_weights(build_network(spec), own, spec.replace(signal_scale=2.0))


def train(tmp_path, scan, **settings):
    workflow = ConfigWorkflow(
        config_file=str(bundle_folder() / "configs" / "train.json"),
        logging_file=False,
        workflow_type="train",
        dataset_dir=str(scan.parents[2]),
        output_dir=str(tmp_path / "training"),
        device="cpu",
        mlflow=False,
        size="tiny",
        **settings,
    )
    workflow.initialize()
    return workflow.parser


def test_setting_is_a_key_of_the_configs(extended, scan, tmp_path):
    assert train(tmp_path, scan, echo_time_ms=70.0).get_parsed_content("model").echo_time_ms == 70
    assert train(tmp_path, scan).get_parsed_content("model").echo_time_ms == 80
    with pytest.raises(RuntimeError) as error:
        train(tmp_path, scan, echo_time_m=70.0)
    assert "did you mean 'echo_time_ms'" in str(error.value.__cause__)


def test_setting_reaches_the_checkpoint_and_those_who_read_it(extended, scan, tmp_path, own):
    spec = train(tmp_path, scan, echo_time_ms=70.0).get_parsed_content("model")
    network = torch.nn.Linear(1, 1)
    Checkpoint(tmp_path / "training", network, {}, spec).save_network()
    assert Extended.load(tmp_path / "training" / "model.json").echo_time_ms == 70
    model = load_model(own, "cpu")
    assert model.spec.echo_time_ms == 95
    assert model.predict(Scan.read(scan)).image.shape == (1, 20, 24, 20)
    out = export_bundle(own, tmp_path / "out")
    assert Extended.load(out / "models" / "model.json").echo_time_ms == 95


def test_inference_with_another_value_of_the_setting_is_refused(extended, scan, own, tmp_path):
    def infer(**settings):
        workflow = ConfigWorkflow(
            config_file=str(bundle_folder() / "configs" / "inference.json"),
            logging_file=False,
            workflow_type="infer",
            checkpoint=str(own),
            dataset_dir=str(scan),
            output_dir=str(tmp_path / "out"),
            device="cpu",
            **settings,
        )
        workflow.initialize()

    infer()
    infer(echo_time_ms=95.0)
    with pytest.raises(RuntimeError) as error:
        infer(echo_time_ms=96.0)
    assert "made with echo_time_ms = 95.0, the configuration says 96.0" in str(error.value.__cause__)
