"""`python -m dmri_monai.cli` is `dmri-monai`."""

from dmri_monai.cli import app

app(prog_name="dmri-monai")
