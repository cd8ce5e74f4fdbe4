"""The record of this user's builds: sha256 of each bundle's manifest, one line of JSON each, outside all bundles.

A bundle that comes from elsewhere carries its own hashes, which prove nothing; this list does. It is in
`$EA_STATE_DIR`, else in `ea` in the user's state folder (on Linux `$XDG_STATE_HOME` or `~/.local/state`).
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from ea_runtime.errors import UserError

FILE = "builds.jsonl"
MAX_BYTES = 64 << 20


def place() -> Path:
    """The record's file."""
    own = os.environ.get("EA_STATE_DIR", "").strip()
    return (Path(own).expanduser() if own else user_state_path("ea", appauthor=False)) / FILE


def require_writable() -> None:
    """Raises UserError if nothing could be recorded, so that no work is lost."""
    try:
        place().parent.mkdir(parents=True, exist_ok=True)
        with place().open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise UserError(
            f"the build record {str(place())!r} cannot be written ({error.strerror}); set EA_STATE_DIR to a folder"
        ) from error


def add(digest: str, **about: Any) -> None:
    """Records a build (or a bundle that the user accepted). One write of one line, safe for several processes."""
    require_writable()
    line = {"sha256": digest, "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"), **about}
    with place().open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def entries() -> list[dict[str, Any]]:
    """All readable lines, oldest first."""
    path = place()
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a line cut by a full disk: it grants nothing
        if isinstance(value, dict) and isinstance(value.get("sha256"), str):
            found.append(value)
    return found


def knows(digest: str) -> bool:
    """True if this user built or accepted a bundle with this manifest."""
    return any(entry["sha256"] == digest for entry in entries())
