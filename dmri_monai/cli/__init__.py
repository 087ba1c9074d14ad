"""The `dmri-monai` command line.  Commands import what they need, so that `--help` answers at once."""

# in the order in which `--help` lists the commands
from dmri_monai.cli import (  # isort: skip
    scan_commands as scan_commands,
    prediction_commands as prediction_commands,
    model_commands as model_commands,
    simulation_commands as simulation_commands,
)
from dmri_monai.cli.command import app

__all__ = ["app"]
