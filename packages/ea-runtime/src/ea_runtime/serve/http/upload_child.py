"""The child process that reads from an uploaded file how it was made.

It runs separately, so that a malicious file meets limits on memory, time and files, and a parent that accepts only a
short JSON object.

    python -P -m ea_runtime.serve.http.upload_child FILE KIND      in the file's folder

Prints {"record": {...}} or {"error": "..."}. KIND: a value of ea_runtime.video.output.KINDS, or json for a sidecar; or
picture, for which it prints the picture as an upright RGB PNG, or an error.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

_MEMORY = 1 << 30
_SECONDS, _PICTURE_SECONDS = 10, 25
_PIXELS = 64 << 20
#: of a picture that a video starts from: its pixels and a copy or two of them fit into the child's memory
MAX_PICTURE_PIXELS = 1 << 26


def main(argv: list[str]) -> int:
    """Reads the file and prints what is in it."""
    place, kind = Path(argv[0]), argv[1]
    _limit_resources(_PICTURE_SECONDS if kind == "picture" else _SECONDS)
    if kind == "picture":
        return _print_picture(place)
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


def _print_picture(place: Path) -> int:
    from PIL import Image

    from ea_runtime.errors import UserError
    from ea_runtime.generation.inputs import opened
    from ea_runtime.video.pictures import to_rgb

    Image.MAX_IMAGE_PIXELS = None  # counted here, with a message of ours
    written = io.BytesIO()
    try:
        with opened("picture", place.name) as picture:
            if picture.width * picture.height > MAX_PICTURE_PIXELS:
                raise UserError(
                    f"the picture has {picture.width}x{picture.height} pixels, at most {MAX_PICTURE_PIXELS:,} are "
                    "read; make it smaller"
                )
            upright = to_rgb(picture)
        upright.info.clear()  # no remarks, nor the place where a photo was taken
        upright.save(written, "PNG", compress_level=1)
    except UserError as error:
        line = str(error).replace(repr(place.name), "").replace("`picture`", "the picture")
        sys.stdout.write(json.dumps({"error": " ".join(line.split())}))
        return 0
    except MemoryError:
        sys.stdout.write(json.dumps({"error": "the picture needs too much memory; make it smaller"}))
        return 0
    except Exception as error:  # a library's: whatever the file made it do
        sys.stdout.write(json.dumps({"error": f"the picture cannot be read: {type(error).__name__}"}))
        return 0
    sys.stdout.buffer.write(written.getbuffer())
    return 0


def _limit_resources(seconds: int = _SECONDS) -> None:
    try:
        import resource
    except ImportError:  # Windows: only the parent's time limit remains
        return
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: _MEMORY,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CPU: seconds,
    }
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(kind, (limit, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
