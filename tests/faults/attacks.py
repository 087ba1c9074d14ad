"""What an attacker sends to a server, and what the server must not do about it."""

from __future__ import annotations

import hashlib
import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, urlsplit

LONGEST_ERROR = 4000  # bytes
MEGABYTE = "a" * 1_000_000


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def is_short_error(self) -> bool:
        """Whether it is an error of HTTP that shows no source code."""
        return 400 <= self.status < 600 and len(self.body) <= LONGEST_ERROR and b"Traceback" not in self.body


def send(uri: str, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> Answer:
    """The answer to one request, whose path is sent as it is; status 599 where the server hangs up."""
    where = urlsplit(uri)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=300)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        connection.putheader("Content-Type", kind)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read())
    except (OSError, http.client.HTTPException) as error:
        return Answer(599, str(error).encode())
    finally:
        connection.close()


def quoted(text: str) -> str:
    """`text` as a part of a URL."""
    return quote_from_bytes(text.encode("utf-8", "surrogateescape"), safe="")


def names(outside: Path) -> dict[str, str]:
    """Names that leave their folder or are code, by kind.

    outside: a scan that no request may reach, in the folder where nothing may be written.
    """
    mark = outside.parent / "mark"
    run = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    return {
        "parent": f"../{outside.parent.name}/{outside.name}",
        "many parents": "../" * 30 + str(outside).lstrip("/"),
        "parents after a right name": "sub-01_dwi/../../" + f"{outside.parent.name}/{outside.name}",
        "absolute": str(outside),
        "absolute without its ending": str(outside).removesuffix(".nii.gz"),
        "address": outside.as_uri(),
        "encoded twice": f"%2e%2e%2f{outside.parent.name}%2f{outside.name}",
        "backslashes": f"..\\{outside.parent.name}\\{outside.name}",
        "folder": str(outside.parent),
        "device": "/dev/zero",
        "expression": f"${run}",
        "reference": "@bundle_root",
        "macro": "%run",
        "statement": run,
        "template": "{{" + run + "}}${" + run + "}",
        "shell": f"$(touch {mark})`touch {mark}`;touch {mark}|touch {mark}",
        "quotes": "'\";--\"' OR '1'='1",
        "newline": "sub-01_dwi\r\nX-Header: 1\r\n\r\n",
        "NUL": "sub-01_dwi\0.nii.gz",
        "no text": "sub-01_dwi\udcff\udcfe",
        "unicode": "sub-\u202e01\u2215..\u2215\U0001f9e0\u00a0",
        "empty": "",
        "dot": ".",
        "option": "--help",
        "1 MB": MEGABYTE,
    }


def component(outside: Path) -> dict[str, Any]:
    """What MONAI's config parser would instantiate."""
    return {
        "_target_": "pathlib.Path.touch",
        "self": {"_target_": "pathlib.Path", "_args_": [str(outside.parent / "mark")]},
    }


def listing(folder: Path) -> dict[str, str]:
    """Digest of every file in `folder`, links as what they say."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = str(path.readlink())
        elif path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()
