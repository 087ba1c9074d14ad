"""The Human Connectome Project's layout.

`<subject>/T1w/Diffusion/` holds data.nii.gz, bvals, bvecs and nodif_brain_mask.nii.gz.
"""

from __future__ import annotations

from pathlib import Path

from dmri_monai.io.present import present

__all__ = ["TABLE_NAMES", "hcp_list"]

TABLE_NAMES = {"bval": "bvals", "bvec": "bvecs"}  # beside any image that has no table of its own name


def hcp_list(root: str | Path) -> list[dict[str, str]]:
    """Items of `<subject>/T1w/Diffusion/` folders, sorted: `image`, `subject`, `session` and `run` (""), `mask`.

    Folders without T1w/Diffusion are passed over; one that lacks its data is an error naming the file.
    """
    root = Path(root)
    if not root.is_dir():
        raise NotADirectoryError(f"there is no folder {root}")
    items = []
    for folder in (subject / "T1w" / "Diffusion" for subject in sorted(root.iterdir())):
        if not folder.is_dir():
            continue
        for name in ("data.nii.gz", *TABLE_NAMES.values()):
            if present(folder / name) is None:
                raise FileNotFoundError(f"no {name} in {folder}")
        item = {"image": str(folder / "data.nii.gz"), "subject": folder.parts[-3], "session": "", "run": ""}
        mask = present(folder / "nodif_brain_mask.nii.gz")
        items.append({**item, "mask": str(mask)} if mask else item)
    if not items:
        raise ValueError(f"no <subject>/T1w/Diffusion folder in {root}")
    return items
