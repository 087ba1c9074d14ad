"""Mutated gradient tables and sidecars, and an oracle by hand that says what a reader may make of them.

A reader is right when it refuses, or returns what the strict reading of the text gives.  The oracle shares no code with
it: text is taken apart by regular expressions of its own, vectors are turned by NumPy.
"""

from __future__ import annotations

import json
import random
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dmri_monai.io import read_dwi
from tests.io.scans import bvals_and_bvecs, rows, write_scan

# fmt: off
WORDS = [
    "nan", "NaN", "inf", "-inf", "1e400", "-0.0", "0x10", "1_0", "1,5", "½", "--1", "1e-400", "+.5", "5.", ".5", "1e3",
    "1E3", "1d3", "١", "1000.0", "0", "-1000", "2000", "0.70710678", "1e5", "2e6", "#", "None", "0.5.5", "1+", "²",
]
# fmt: on
BLANKS = ["\xa0", "\x1c", "\x0b", "\x0c", "\x85", "\t", "  ", ",", ";", "\x00", "\u2009"]
ENDS = ["\r", "\r\n", "\n\n", "\x1e", "\u2028", " #\n", "\ufeff"]


def mutated(text: str, draw: random.Random) -> str:
    """`text` after one to three changes of the kinds that editors, converters and disks make."""
    for _ in range(draw.randint(1, 3)):
        text = draw.choice(CHANGES)(text, draw)
    return text


def _spans(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"[^ \n]+", text)] or [(0, len(text))]


def _replace_word(text: str, draw: random.Random) -> str:
    a, b = draw.choice(_spans(text))
    return text[:a] + draw.choice(WORDS) + text[b:]


def _drop_word(text: str, draw: random.Random) -> str:
    a, b = draw.choice(_spans(text))
    return text[:a] + text[b:]


def _swap_words(text: str, draw: random.Random) -> str:
    (a, b), (c, d) = sorted(draw.choices(_spans(text), k=2))
    return text if (a, b) == (c, d) else text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:]


def _replace_blank(text: str, draw: random.Random) -> str:
    places = [i for i, c in enumerate(text) if c in " \n"] or [0]
    i = draw.choice(places)
    return text[:i] + draw.choice(BLANKS + ENDS) + text[i + 1 :]


def _flip_character(text: str, draw: random.Random) -> str:
    i = draw.randrange(max(1, len(text)))
    return text[:i] + draw.choice("0123456789.-+eE #\n\t") + text[i + 1 :]


def _cut(text: str, draw: random.Random) -> str:
    return text[: draw.randrange(len(text) + 1)]


def _drop_line(text: str, draw: random.Random) -> str:
    lines = text.split("\n")
    del lines[draw.randrange(len(lines))]
    return "\n".join(lines)


def _repeat_line(text: str, draw: random.Random) -> str:
    lines = text.split("\n")
    i = draw.randrange(len(lines))
    return "\n".join([*lines[:i], lines[i], *lines[i:]])


def _transpose(text: str, draw: random.Random) -> str:
    table = [line.split(" ") for line in text.split("\n") if line]
    return "\n".join(" ".join(row) for row in zip(*table, strict=False)) + "\n"


def _comment(text: str, draw: random.Random) -> str:
    i = draw.choice([0, *(m.end() for m in re.finditer("\n", text))])
    return text[:i] + "# 1 2 3\n" + text[i:]


WORD_CHANGES = [
    _replace_word,
    _replace_word,
    _replace_word,
    _drop_word,
    _swap_words,
    _flip_character,
    _flip_character,
]
CHANGES = [
    *WORD_CHANGES,
    _replace_blank,
    _replace_blank,
    _cut,
    _drop_line,
    _repeat_line,
    _transpose,
    _comment,
]


def strict_rows(content: bytes) -> list[list[float]] | None:
    """Numbers of a text by the letter, or None where it is no plain table: the oracle's own reading."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    text = text[1:] if text.startswith("\ufeff") else text
    table = []
    for line in re.split("\r\n|\r|\n", text):
        words = re.findall("[^ \t]+", line.split("#")[0])
        for word in words:
            if not re.fullmatch(
                r"[-+]?(([0-9]+\.?[0-9]*)|(\.[0-9]+))([eE][-+]?[0-9]+)?|[-+]?[nN][aA][nN]", word
            ):
                return None
        if words:
            table.append([float(word) for word in words])
    return table


def expected_table(
    bval: bytes, bvec: bytes, affine: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """b-values and world vectors of FSL text for an image of `n` volumes; None where it must be refused."""
    values, vectors = strict_rows(bval), strict_rows(bvec)
    if not values or not vectors or len({len(row) for row in vectors}) != 1:
        return None
    if len(values) != 1 and any(len(row) != 1 for row in values):
        return None
    bvals, table = np.array(sum(values, [])), np.array(vectors)
    if len(bvals) != n or not np.isfinite(bvals).all() or bvals.min() < 0 or bvals.max() > 1e6:
        return None
    if table.shape not in ((3, n), (n, 3)) or np.isinf(table).any():
        return None
    along = table.T if table.shape == (3, n) else table
    weighted = bvals > 50
    some, every = np.isnan(along).any(1), np.isnan(along).all(1)
    if (some & ~every).any() or (some & weighted).any():
        return None
    norms = np.linalg.norm(along, axis=1)
    if (np.abs(norms[weighted] - 1) > 0.05).any():
        return None
    unit = np.zeros_like(along)
    unit[weighted] = along[weighted] / norms[weighted, None]
    u, _, vt = np.linalg.svd(affine[:3, :3])
    unit = unit * [-1, 1, 1] if np.linalg.det(u @ vt) > 0 else unit
    return bvals, unit @ (u @ vt).T


def wrong_tables(folder: Path, affine: Any, count: int, seed: int = 0) -> Iterator[str]:
    """What is wrong with the reading of each of `count` mutated scans; nothing where all is right.

    Also says where a text that is right by the letter was refused.
    """
    image = write_scan(folder / "dwi.nii", affine=affine)
    bvals, bvecs = bvals_and_bvecs()
    texts = {"bval": rows(bvals), "bvec": rows(bvecs.T)}
    draw, accepted = random.Random(seed), 0
    for case in range(count):
        kind = draw.choice(["bval", "bvec", "bvec"])
        changed = {**texts, kind: mutated(texts[kind], draw)}
        content = {name: text.encode("utf-8") for name, text in changed.items()}
        for name, raw in content.items():
            image.with_name(f"dwi.{name}").write_bytes(raw)
        expected = expected_table(content["bval"], content["bvec"], np.asarray(affine), 8)
        found = _read(image)
        if isinstance(found, str):
            if str(folder) not in found:
                yield f"case {case}: the error names no file: {found}"
            if expected is not None:
                yield f"case {case}: refused though right ({found}): {changed[kind]!r}"
        elif expected is None:
            yield f"case {case}: read though wrong: {changed[kind]!r}"
        else:
            accepted += 1
            if not (np.array_equal(found[0], expected[0]) and np.abs(found[1] - expected[1]).max() < 1e-6):
                yield f"case {case}: read as something else: {changed[kind]!r}"
    if count >= 100 and not 0.02 * count < accepted < 0.9 * count:
        yield f"{accepted} of {count} mutated tables were accepted: the mutations test nothing"


def _read(image: Path) -> str | tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _, table = read_dwi(image)
        except (ValueError, OSError) as error:
            return str(error)
    return table.bvals.numpy(), table.bvecs.numpy()


VALUES: dict[str, list[Any]] = {
    "PhaseEncodingDirection": ["i", "j-", "k", "AP", "", "-j", "J", 1, None, ["j"], "j "],
    "SliceEncodingDirection": ["k", "k-", "i", "", "z", 2, None],
    "TotalReadoutTime": [0.05, 0, -0.05, 50, "0.05", True, None, 1e-9, [0.05]],
    "MultibandAccelerationFactor": [1, 2, 2.0, 2.5, 0, -1, "2", None, 3],
    "SliceTiming": [
        [0.0, 1.5, 0.7], [0, 1500, 700], [0.0, 1.5], [0.0, -1.5, 0.7], 0.1, [], None, ["0", 1, 2], [0.0, 0.5, 1, 1.5],
        [0, 0.7, 0.7],
    ],
    "RepetitionTime": [2.5, 2500, 0, "2.5", None, 1.0],
}  # fmt: skip
AXES = {"i": 0, "j": 1, "k": 2}
SHAPE = (5, 4, 3)


def sidecar_text(draw: random.Random) -> bytes:
    """A sidecar of right, wrong and doubled entries, sometimes with a damaged byte."""
    pairs = [(key, draw.choice(VALUES[key])) for key in draw.choices(list(VALUES), k=draw.randint(1, 6))]
    text = "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs) + "}"
    if draw.random() < 0.2:
        text = text[:-1] + ', "InstitutionName": "Universität"}'
    raw = text.encode(draw.choice(["utf-8", "utf-8-sig", "latin-1"]))
    if draw.random() < 0.15:
        i = draw.randrange(len(raw))
        raw = raw[:i] + bytes([draw.randrange(256)]) + raw[i + 1 :]
    return raw


def expected_meta(raw: bytes, affine: np.ndarray) -> dict[str, Any]:
    """What a reader may take from a sidecar: entries that are right, stand once, and contradict no other."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    text = text[1:] if text.startswith("\ufeff") else text
    try:
        pairs = json.loads(text, object_pairs_hook=lambda found: found)
    except ValueError:
        return {}
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        return {}
    values: dict[str, list[Any]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    entries = {key: given[0] for key, given in values.items() if all(v == given[0] for v in given)}
    return _meaning({key: value for key, value in entries.items() if value is not None}, affine)


def _meaning(entries: dict[str, Any], affine: np.ndarray) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    number = {
        key: float(value)
        for key, value in entries.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    }
    codes = {
        key: value
        for key, value in entries.items()
        if isinstance(value, str) and re.fullmatch("[ijk]-?", value)
    }
    phase, slices = codes.get("PhaseEncodingDirection"), codes.get("SliceEncodingDirection")
    if phase:
        meta["phase_encoding_world"] = _direction(phase, affine)
    if 0 < number.get("TotalReadoutTime", 0) <= 1:
        meta["total_readout_time_s"] = number["TotalReadoutTime"]
    if number.get("MultibandAccelerationFactor", 0) >= 1 and number["MultibandAccelerationFactor"] % 1 == 0:
        meta["multiband_factor"] = int(number["MultibandAccelerationFactor"])
    if phase and slices and phase[0] == slices[0]:
        return meta
    times = entries.get("SliceTiming")
    given = number.get("RepetitionTime", 0)
    limit = given if 0 < given <= 60 else 60.0
    right = (
        isinstance(times, list)
        and len(times) == SHAPE[AXES[(slices or "k")[0]]]
        and all(isinstance(t, int | float) and not isinstance(t, bool) and 0 <= t <= limit for t in times)
    )
    if right:
        meta["slice_timing_s"] = times
        together = len(set(times)) < len(times)
        if "multiband_factor" in meta and together != (meta["multiband_factor"] > 1):
            del meta["multiband_factor"]
    if right or slices:
        meta["slice_world"] = _direction(slices or "k", affine)
    return meta


def _direction(code: str, affine: np.ndarray) -> np.ndarray:
    column = affine[:3, AXES[code[0]]] * (-1 if code.endswith("-") else 1)
    return column / np.linalg.norm(column)


KEYS = ("phase_encoding_world", "slice_world", "total_readout_time_s", "multiband_factor", "slice_timing_s")


def wrong_sidecars(folder: Path, affine: Any, count: int, seed: int = 0) -> Iterator[str]:
    """What is wrong with the reading of each of `count` sidecars; nothing where all is right.

    No sidecar may keep a scan from being read; what is left out must be warned of.
    """
    image = write_scan(folder / "dwi.nii", affine=affine)
    draw, known = random.Random(seed), 0
    for case in range(count):
        raw = sidecar_text(draw)
        image.with_name("dwi.json").write_bytes(raw)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            meta = read_dwi(image)[0].meta
        expected = expected_meta(raw, np.asarray(affine))
        known += bool(expected)
        found = {key: meta[key] for key in KEYS if key in meta}
        if set(found) != set(expected):
            yield f"case {case}: {sorted(found)} instead of {sorted(expected)}: {raw!r}"
        elif any(
            np.abs(np.asarray(found[k], float) - np.asarray(expected[k], float)).max() > 1e-6 for k in found
        ):
            yield f"case {case}: {found} instead of {expected}: {raw!r}"
        silent = not any("dwi.json" in str(one.message) for one in said)
        if silent and "acquisition_errors" in meta:
            yield f"case {case}: left out in silence: {raw!r}"
    if count >= 100 and known < 0.3 * count:
        yield f"{known} of {count} sidecars say anything: the mutations test nothing"
