"""`python -m dmri_monai.cli` is `dmri-monai`."""

from dmri_monai.cli import app

if __name__ == "__main__":
    app(prog_name="dmri-monai")
