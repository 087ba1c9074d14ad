import re
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

PAGE = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
SNIPPETS = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_page_shows_configurations():
    assert len(SNIPPETS) >= 2


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_configuration_of_the_page_gives_a_network(snippet, tmp_path):
    (tmp_path / "network.json").write_text('{"imports": ["$import dmri_monai"], "network": %s}' % snippet)  # noqa: UP031
    parser = ConfigParser()
    parser.read_config(tmp_path / "network.json")
    assert isinstance(parser.get_parsed_content("network"), torch.nn.Module)
