"""Attacks on a real MONAI Label server that serves our bundle: no code runs, nothing outside of the studies is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dmri_monai.integrations.monailabel import write_studies
from tests.faults.attacks import MEGABYTE, Answer, as_json, component, listing, names, quoted, send
from tests.label_servers import LabelServer, label_server
from tests.small_models import save_model

KIND = "attacks on MONAI Label"
RIGHT = "/infer/dmri_tissue?image=sub-01_dwi&output=image"
FORM = "application/x-www-form-urlencoded"


@dataclass
class Labelled:
    """A server, a scan that it must not read, and the digest of its right answer."""

    server: LabelServer
    home: Path
    secret: Path
    right: str = ""

    def ask(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> Answer:
        return send(self.server.url, method, path, body, kind)

    def infer(self, image: str) -> Answer:
        return self.ask("POST", f"/infer/dmri_tissue?output=image&image={quoted(image)}")

    def order(self, params: dict[str, Any]) -> Answer:
        """The right request, with parameters besides."""
        return self.ask("POST", RIGHT, f"params={quoted(json.dumps(params))}".encode(), FORM)

    def hands_out_the_scan(self) -> bool:
        found = self.ask("GET", "/datastore/image?image=sub-01_dwi")
        return found.status == 200 and found.body == self.secret.read_bytes()

    def answers_rightly(self, answer: Answer | None = None) -> bool:
        found = answer or self.ask("POST", RIGHT)
        return found.status == 200 and hashlib.sha256(found.body).hexdigest() == self.right


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, scan) -> Iterator[Labelled]:
    home = tmp_path_factory.mktemp("label")
    write_studies(scan.parents[2], home / "studies", preview="none")
    shutil.copytree(scan.parent, home / "outside")
    model = save_model(home / "model.pt", architecture="plain", network_options={"filters": 4})
    with label_server(home, model) as server:
        found = Labelled(server, home, home / "outside" / scan.name)
        # the first request decides what the server keeps of a config: this one would run code
        mark = f"$__import__('pathlib').Path({str(home / 'outside' / 'mark')!r}).touch()"
        assert found.order({"device": mark}).is_short_error
        found.right = hashlib.sha256(found.ask("POST", RIGHT).body).hexdigest()
        assert found.answers_rightly()
        yield found


def infers(labelled: Labelled) -> dict[str, Callable[[], Answer]]:
    """Requests for a mask, by name, all wrong."""
    outside = names(labelled.secret)
    sent: dict[str, Callable[[], Answer]] = {}
    for kind, name in outside.items():
        sent[f"image: {kind}"] = lambda name=name: labelled.infer(name)
        sent[f"image in params: {kind}"] = lambda name=name: labelled.order({"image": name})
        if len(name) < 10_000:
            path = f"/infer/{quoted(name)}?output=image&image=sub-01_dwi"
            sent[f"model: {kind}"] = lambda path=path: labelled.ask("POST", path)
    wrong = {
        "number": 5,
        "list": [str(labelled.secret)],
        "null": None,
        "component": component(labelled.secret),
    }
    for kind, value in wrong.items():
        sent[f"image is {kind}"] = lambda value=value: labelled.order({"image": value})
    for kind in ("expression", "reference", "macro", "1 MB"):
        sent[f"device: {kind}"] = lambda name=outside[kind]: labelled.order({"device": name})
        sent[f"extension: {kind}"] = lambda name=outside[kind]: labelled.order({"result_extension": name})
    sent["extension leaves its folder"] = lambda: labelled.order(
        {"result_extension": "/../../../outside/mark.nii.gz"}
    )
    sent["weights of another folder"] = lambda: labelled.order({"model_filename": str(labelled.secret)})
    for kind, form in {
        "no JSON": b"params={",
        "list": b"params=[1]",
        "number": b"params=5",
        "deep": b"params=" + b"%5B" * 50_000,
        "no text": b"params=%ff%fe",
    }.items():
        sent[f"params: {kind}"] = lambda form=form: labelled.ask("POST", RIGHT, form, FORM)
    return sent


def reads(labelled: Labelled) -> dict[str, Callable[[], Answer]]:
    """Requests for files and records that are not there."""
    sent: dict[str, Callable[[], Answer]] = {}
    for kind, name in names(labelled.secret).items():
        if len(name) < 10_000 and name:
            for path in (
                f"/datastore/image?image={quoted(name)}",
                f"/datastore/label?label={quoted(name)}&tag={quoted(name)}",
                f"/datastore/image/info?image={quoted(name)}",
                f"/model/{quoted(name)}",
                f"/session/{quoted(name)}?image=true",
            ):
                sent[f"{path.split('?')[0][:20]}: {kind}"] = lambda path=path: labelled.ask("GET", path)
    return sent


def attack(
    count: Callable[..., None],
    labelled: Labelled,
    sent: dict[str, Callable[[], Answer]],
    serves: Callable[[], bool],
) -> None:
    """Send them all; after each the server must answer a right request rightly, and no file may have changed."""
    before, wrong = files(labelled), []
    for name, request in sent.items():
        answer = request()
        nothing = answer.body == b"{}"  # of the record of an image that is not there
        right = (answer.is_short_error or nothing) and serves()
        count(KIND, "right" if right else "wrong")
        wrong += [] if right else [(name, answer.status, answer.body[:300])]
    assert not wrong, "\n".join(map(str, wrong))
    deadline = time.monotonic() + 30  # the mask of the last right request goes after its answer
    while (changed := set(files(labelled).items()) - set(before.items())) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not changed
    assert set(before) <= set(files(labelled))


def files(labelled: Labelled) -> dict[str, str]:
    """All files of the server but its logs and caches of compiled code."""
    found = listing(labelled.home)
    return {name: d for name, d in found.items() if not name.endswith((".log", ".pyc", ".lock"))}


def test_every_wrong_request_for_a_mask_is_answered_with_a_short_error(labelled, count):
    attack(count, labelled, infers(labelled), labelled.answers_rightly)


def test_files_and_records_that_are_not_there_are_not_found(labelled, count):
    attack(count, labelled, reads(labelled), labelled.hands_out_the_scan)


@pytest.mark.parametrize("name", ["device", "max_epochs", "_target_", "1 MB"])
def test_a_training_asked_for_with_code_fails_and_changes_nothing(labelled, count, name):
    code = names(labelled.secret)["expression"]
    orders: dict[str, Any] = {
        "device": {"device": code},
        "max_epochs": {"device": "cpu", "max_epochs": code},
        "_target_": {"device": "cpu", "max_epochs": component(labelled.secret)},
        "1 MB": {"device": MEGABYTE},
    }
    before = {
        path: files(labelled)[path] for path in files(labelled) if "/models/" in path or "outside" in path
    }
    answer = labelled.ask("POST", "/train/dmri_tissue", as_json(orders[name]))
    if answer.status == 200:
        # MONAI Label hands an order to a process on its command line; one too long for that stays SUBMITTED for ever
        ended = ("DONE", "ERROR", "SUBMITTED") if name == "1 MB" else ("DONE", "ERROR")
        done = labelled.server.wait("/train/", lambda train: train["status"] in ended)
        assert done["status"] != "DONE", count(KIND, "wrong")
    after = files(labelled)
    unchanged = before.items() <= after.items() and not (labelled.home / "outside" / "mark").exists()
    count(KIND, "right" if unchanged else "wrong")
    assert unchanged
    assert labelled.answers_rightly()


@pytest.mark.parametrize("body", [b"{", b"[]", b"5", b'"text"', b"\xff", b"[" * 100_000], ids=range(6))
def test_an_order_that_is_no_dictionary_is_refused(labelled, count, body):
    answer = labelled.ask("POST", "/train/dmri_tissue", body)
    count(KIND, "right" if answer.is_short_error else "wrong")
    assert answer.is_short_error
    assert labelled.answers_rightly()


def test_of_fifty_requests_at_once_the_right_ones_are_answered_rightly(labelled, count):
    sent: list[Callable[[], bool]] = []
    for name in list(names(labelled.secret).values())[:25]:
        sent += [
            lambda: labelled.answers_rightly(labelled.ask("POST", RIGHT)),
            lambda name=name: labelled.infer(name).is_short_error,
        ]
    with ThreadPoolExecutor(len(sent)) as pool:
        found = [done.result() for done in [pool.submit(one) for one in sent]]
    count(KIND, "right", sum(found))
    count(KIND, "wrong", len(found) - sum(found))
    assert len(found) == 50
    assert all(found)


def test_weights_that_are_not_the_described_ones_make_no_mask(labelled, count):
    (weights,) = labelled.home.glob("apps/*/model/dmri_tissue/models/model.pt")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    answer = labelled.ask("POST", RIGHT)
    weights.write_bytes(whole)
    count(KIND, "right" if answer.is_short_error else "wrong")
    assert answer.is_short_error
    assert b"model.pt is not the file" in answer.body
    assert labelled.answers_rightly()


def test_no_mask_is_left_in_the_temporary_folder(labelled, count):
    deadline = time.monotonic() + 30
    while (left := os.listdir(labelled.home / "tmp")) and time.monotonic() < deadline:
        time.sleep(0.5)
    left = [name for name in left if name.endswith(".nii.gz")]
    count(KIND, "left over", len(left))
    assert not left
