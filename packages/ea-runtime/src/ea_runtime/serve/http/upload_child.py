"""The child process that reads from an uploaded file how it was made.

It runs separately, so that a malicious file meets limits on memory, time and files, and a parent that accepts only a
short JSON object.

    python -P -m ea_runtime.serve.http.upload_child FILE KIND      in the file's folder

Prints {"record": {...}} or {"error": "..."}. KIND: a value of ea_runtime.video.output.KINDS, or json for a sidecar.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

_MEMORY = 1 << 30
_SECONDS = 10
_PIXELS = 64 << 20


def main(argv: list[str]) -> int:
    """Reads the file and prints what is in it."""
    place, kind = Path(argv[0]), argv[1]
    _limit_resources()
    from ea_runtime.errors import UserError
    from ea_runtime.generation.recipe import read_embedded
    from ea_runtime.generation.sidecar import read_sidecar

    if kind in ("png", "webp"):
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = _PIXELS // 2  # Pillow refuses twice as many
    try:
        found = {"record": read_sidecar(place) if kind == "json" else read_embedded(place, kind)}
    except UserError as error:
        found = {"error": str(error).replace(repr(place.name), "the file").replace(place.name, "the file")}
    except Exception as error:  # a library's: whatever the file made it do
        found = {"error": f"the file cannot be read: {type(error).__name__}"}
    sys.stdout.write(json.dumps(found))
    return 0


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:  # Windows: only the parent's time limit remains
        return
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: _MEMORY,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CPU: _SECONDS,
    }
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(kind, (limit, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
