"""MONAI Label: a studies folder from BIDS, and a bundle folder that its server serves and trains again."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from monai.transforms import Compose, Transform
from tqdm import tqdm

from dmri_monai.failures import first_cause
from dmri_monai.inference.bundle_config import check_path, current_config
from dmri_monai.inference.model import load_model
from dmri_monai.inference.weights import read_weights, save_model
from dmri_monai.integrations.bundle_export import OWN_WEIGHTS, write_bundle
from dmri_monai.io import bids, read_dwi, write_nifti
from dmri_monai.io.nifti import nifti_stem
from dmri_monai.io.writing import replacing
from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.qspace.direction_maps import direction_maps

__all__ = ["OnImage", "check_request", "publish", "write_label_bundle", "write_studies"]

logger = logging.getLogger(__name__)

STUDIES = "MONAI_LABEL_STUDIES"  # environment variable in which the server keeps the path of its studies
LONGEST = 500  # characters of an error that the server answers with
Preview = Literal["b0", "fa", "none"]
DEVICE = "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')"  # of the configs
# of train.json under the server: it names the items, and the served model is where it begins and what it replaces
TRAINING: dict[str, Any] = {
    "data": {},
    "output_dir": "$@bundle_root + '/training'",
    "overwrite": True,
    "run": [
        "$@train#trainer.run()",
        "$dmri_monai.integrations.publish(@output_dir, @bundle_root)",
    ],
}


class OnImage(Transform):
    """Run `transform` on the image of a server's request alone, and add what it makes to the request.

    MONAI takes every entry whose name begins with "image_" for meta data, and the server's `image_path` is a string;
    the server, in turn, needs its own entries later.  A scan that cannot be read, or is none of the server's studies,
    becomes HTTP error 400 with a message: the server itself takes any path of the machine as a scan.  So do `weights`
    that are not what the description beside them says, and others that a request names: the server would load them.
    """

    def __init__(self, transform: Compose, weights: str | None = None) -> None:
        self.transform, self.weights = transform, None if weights is None else Path(weights)
        self._checked: tuple[int, int] | None = None

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        try:
            _require_study(data["image"])
            self._require_own_weights(data.get("model_filename"))
            return {**data, **self.transform({"image": data["image"]})}
        except Exception as error:  # whatever a request holds
            raise _refusal(error) from error

    def _require_own_weights(self, named: Any) -> None:
        if self.weights is None:
            return
        name = named[0] if isinstance(named, list) and named else named
        if name not in (None, self.weights.name):
            raise ValueError(f"the weights of this server are {self.weights.name}, not {str(name)[:100]!r}")
        state = self.weights.stat()
        if self._checked != (state.st_mtime_ns, state.st_ino):
            read_weights(self.weights)
            self._checked = (state.st_mtime_ns, state.st_ino)


def _require_study(image: Any) -> None:
    """ValueError or TypeError for an image that is not a file, or the target of a link, in the server's studies."""
    studies = os.environ.get(STUDIES)
    if studies is None:
        return
    if not isinstance(image, str):
        raise TypeError(f"image is {type(image).__name__}, expected the name of a study")
    with os.scandir(studies) as entries:
        known = {os.path.realpath(entry.path) for entry in entries if entry.is_file()}
    if os.path.realpath(image) not in known:
        raise ValueError(f"not one of the studies of this server: {image[:100]!r}")


def _refusal(error: Exception) -> Exception:
    """`error` as the server's own kind, with the message of its first cause."""
    from fastapi import HTTPException  # comes with MONAI Label

    message = str(first_cause(error))[:LONGEST] or type(error).__name__
    logger.error("%s", message)
    return HTTPException(status_code=400, detail=message)


def write_studies(
    bids_dir: str | Path,
    out: str | Path,
    *,
    preview: Preview = "b0",
    labels: str | None = None,
    **reader: Any,
) -> list[Path]:
    """Lay out the scans of a BIDS folder as MONAI Label's flat studies folder; returns the studies.

    Every scan becomes a link `<name>_dwi.nii.gz` to the original, beside which its gradient table is found.
    preview: each scan also gets a 3-D study `<name>_b0.nii.gz` (mean b0) or `<name>_fa.nii.gz`, for viewers that cannot
    show 4-D.  labels: ending of derivatives, e.g. "dseg", copied as final labels; those already there are kept.
    reader: options of :func:`dmri_monai.io.read_dwi`.  ValueError or OSError for a folder without scans, or where a
    study of another scan is in the way.
    """
    if preview not in get_args(Preview):
        raise ValueError(f"preview is {preview!r}, expected one of {get_args(Preview)}")
    out = Path(out)
    wanted = {"label": labels} if labels else {}
    studies = []
    for item in tqdm(bids.data_list(bids_dir, labels=wanted, missing="skip"), desc="studies", unit="scan"):
        scan = Path(item["image"])
        studies.append(_link(scan, out / scan.name))
        if "label" in item:
            _copy(Path(item["label"]), out / "labels" / "final" / scan.name)
        if preview != "none":
            studies.append(_write_preview(scan, out, preview, reader))
    return studies


def _link(source: Path, link: Path) -> Path:
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.resolve() == source.resolve():
        return link
    if link.exists() or link.is_symlink():
        raise FileExistsError(f"{link} is in the way of a link to {source}")
    link.symlink_to(source.resolve())
    return link


def _copy(label: Path, target: Path) -> None:
    """Copy, because the server writes a corrected label over the old one; through a link that would be the original."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as (temporary,):
        shutil.copyfile(label, temporary)


def _write_preview(scan: Path, out: Path, kind: str, reader: Mapping[str, Any]) -> Path:
    path = out / f"{nifti_stem(scan).removesuffix('_dwi')}_{kind}.nii.gz"
    image, table = read_dwi(scan, **reader)
    volume = mean_b0(image.as_tensor(), table.bvals, table.b0_threshold, without_b0="lowest shell")
    if kind == "fa":
        maps = direction_maps(image.as_tensor(), table, image.affine, head_mask(volume))
        if maps is None:
            raise ValueError(f"{scan}: its gradient table does not determine a tensor, use the b0 preview")
        volume = maps.fa
    write_nifti(path, volume, image.affine)
    return path


def write_label_bundle(checkpoint: str | Path, out: str | Path) -> Path:
    """Make a bundle folder `out` for MONAI Label from a trained checkpoint, or a released model; returns `out`.

    The bundle of :func:`export_bundle`, its configs complete without overlays.  Training through the server goes on
    from the served model and replaces it when it is finished.  FileExistsError for a folder that is not empty;
    ValueError for a model that the server cannot show.
    """
    model = load_model(checkpoint, "cpu")
    if model.spec.takes == "samples" or model.learned.n_classes is None:
        raise ValueError(
            f"{model.weights} cannot be served: MONAI Label hands a network the image alone and draws classes, such as "
            f"tissue's; this one, {model.spec.architecture!r}, has learned {model.learned.name}"
        )
    return write_bundle(model, Path(out), _for_the_server)


def publish(output_dir: str | Path, bundle_root: str | Path) -> None:
    """Let the model of a finished training take the place of the one that is served."""
    source, target = Path(output_dir, "model.pt"), Path(bundle_root, "models", "model.pt")
    trained = load_model(source, "cpu")
    save_model(trained.network, target, trained.spec)


def check_request() -> None:
    """ValueError for a request to train whose words the config of the calling expression would evaluate.

    The server puts `device`, `max_epochs` and the paths of its studies into the config as they come.
    """
    config = current_config()
    device, epochs = config["device"], config["train"]["trainer"]["max_epochs"]
    if device != DEVICE and not (isinstance(device, str) and re.fullmatch(r"cpu|cuda(:\d+)?", device)):
        raise ValueError(f"device is {device!r}, expected cpu, cuda or cuda:0")
    if epochs != "@max_epochs" and (not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1):
        raise ValueError(f"max_epochs is {epochs!r}, expected a whole number")
    for part in ("train", "validate"):
        studies = config[part]["dataset"]["data"]
        for item in studies if isinstance(studies, list) else ():
            for name, value in item.items():
                check_path(name, value)


def _for_the_server(name: str, config: dict[str, Any]) -> None:
    """What MONAI Label needs otherwise: preprocessing of a request's image alone, a training that ends by
    publishing.
    """
    if name == "inference.json":
        config["model"] = config["model"].replace(
            "@device", "None"
        )  # the server puts a request's words there
        config["on_image"] = config["preprocessing"]
        config["postprocessing"] = config["postprocessing"].replace("@preprocessing", "@on_image")
        wrapped = {"_target_": "dmri_monai.integrations.OnImage", "transform": "@on_image"}
        wrapped["weights"] = f"${OWN_WEIGHTS}"
        config["preprocessing"] = {"_target_": "monai.transforms.Compose", "transforms": [wrapped]}
    elif name == "train.json":
        config |= TRAINING
        config["initialize"] = ["$dmri_monai.integrations.check_request()", *config["initialize"]]
    elif (
        name == "metadata.json"
    ):  # where the server finds the numbers in a mask, also of a network with one channel
        output = config["network_data_format"]["outputs"]["pred"]
        names = [n for n in output["channel_def"].values() if n != "background"]
        output["channel_def"] = {"0": "background"} | {str(i): n for i, n in enumerate(names, start=1)}
