import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from dmri_monai.inference.bundle_config import DERIVED, NAMED_SHELLS
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.networks import AnyProtocolUNet

PAGE = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
TABLE = PAGE.split("## Settings of a model")[1].split("\n## ")[0]
SETTINGS = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| .* \|$", TABLE, flags=re.MULTILINE)
SNIPPETS = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_page_shows_configurations():
    assert len(SNIPPETS) >= 2


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_configuration_of_the_page_gives_a_network(snippet, tmp_path):
    (tmp_path / "network.json").write_text('{"imports": ["$import dmri_monai"], "network": %s}' % snippet)  # noqa: UP031
    parser = ConfigParser()
    parser.read_config(tmp_path / "network.json")
    assert isinstance(parser.get_parsed_content("network"), torch.nn.Module)


def test_every_setting_of_a_model_is_in_the_table():
    assert {name for name, *_ in SETTINGS} == set(ModelSpec.model_fields) - {*DERIVED, "task", "architecture"}
    assert "`architecture` is `any` by default" in PAGE
    assert ModelSpec().architecture == "any"


@pytest.mark.parametrize(("name", "any_shells", "named_shells"), SETTINGS, ids=[row[0] for row in SETTINGS])
def test_defaults_of_the_table_are_those_of_a_model(name, any_shells, named_shells):
    for architecture, shown in (("any", any_shells), ("equivariant", named_shells)):
        default = ModelSpec.of({"architecture": architecture}).model_dump(mode="json")[name]
        if shown != "–":
            assert json.loads(shown.strip("`")) == default
    if name in NAMED_SHELLS:
        assert any_shells == "–"


def test_every_parameter_of_the_default_network_is_told():
    part = PAGE.split("## AnyProtocolUNet")[1].split("**Input.**")[0]
    parameters = set(inspect.signature(AnyProtocolUNet).parameters)
    assert parameters <= set(re.findall(r"`(\w+)`", part))
