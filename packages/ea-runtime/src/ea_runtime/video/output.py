"""Frames to files: videos, animations, pictures, folders of frames.

    output = plan_output("out.mp4")            # everything that can be wrong with it is found here
    with output.writer(fps=24) as write:       # nothing half-written stays behind, whatever happens inside
        for frame in frames:                   # (H, W, 3) uint8
            write(frame)

Which kind follows from the name: .mp4 and .mov (H.264), .webm (VP9), .webp and .gif (one frame: a picture), .png
(more frames: a contact sheet of up to 16), and a folder of numbered .png files if the name ends in "/", has no
suffix or is a folder already. Folders are made where missing.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import UserError
from ea_runtime.files.atomic import temporary_sibling

if TYPE_CHECKING:
    import numpy as np

    from ea_runtime.video.marks import Marks

KINDS = {".mp4": "mp4", ".mov": "mov", ".webm": "webm", ".webp": "webp", ".gif": "gif", ".png": "png"}
#: bytes of a file name, with room for the suffix of the sidecar; file systems take 255
MAX_NAME_BYTES = 250
_FRAME_NAME = re.compile(r"\d{5,}\.png")


@dataclass(frozen=True, slots=True)
class Output:
    """A place that can be written to. kind: a value of KINDS, or "folder"."""

    path: Path
    kind: str
    overwrite: bool = False

    @contextmanager
    def writer(
        self, fps: float | Fraction, num_frames: int | None = None, marks: Marks | None = None
    ) -> Iterator[Callable[[np.ndarray], None]]:
        """A function that takes the frames one by one; the file appears, whole, when the block ends well.

        fps: frames per second. num_frames: how many will come, if known (a contact sheet then holds
        fewer). marks: what the file says of its making.
        Raises UserError where no frame came or the file cannot be written.
        """
        if num_frames is not None and (type(num_frames) is not int or num_frames < 1):
            raise UserError(f"`num_frames` must be a whole number of 1 or more, or None, got {num_frames!r}")
        from ea_runtime.video import writers

        classes = {
            "mp4": writers.Mp4Writer,
            "mov": writers.MovWriter,
            "webm": writers.WebmWriter,
            "webp": writers.WebpWriter,
            "gif": writers.GifWriter,
            "png": writers.PngWriter,
            "folder": writers.FolderWriter,
        }
        temporary = temporary_sibling(self.path)
        writer: Any = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            writer = classes[self.kind](temporary, check_fps(fps), num_frames, marks)
            yield writer.add
            if not writer.count:
                raise UserError(f"no frames came for {str(self.path)!r}")
            writer.finish()
            self._put(temporary)
        except OSError as error:
            raise UserError(
                f"{str(self.path)!r} cannot be written: {error.strerror or error}; free some space, or choose another "
                "place"
            ) from error
        finally:
            # still there: something failed, or the user stopped it
            if temporary.exists():
                _quietly(writer.abort if writer else None)
                shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink()

    def _put(self, temporary: Path) -> None:
        check_free(self.path, self.kind, self.overwrite)
        if self.kind == "folder" and self.path.exists():
            old = temporary_sibling(self.path)
            self.path.rename(old)
            temporary.rename(self.path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, self.path)


def plan_output(path: str | os.PathLike[str], overwrite: bool = False) -> Output:
    """The output that `path` asks for.

    Raises UserError for an unknown suffix, an existing file and a place that cannot be written.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise UserError(f"`output` must be a file name such as out.mp4, got {path!r}") from None
    if not text or "\0" in text or Path(text).name.lower() in KINDS:
        raise UserError(f"`output` must be a file name such as out.mp4, got {text!r}")
    try:
        return _planned(text, overwrite)
    except OSError as error:  # a path that is too long, a folder that may not be looked into
        reason = error.strerror or error
        raise UserError(f"{text[:200]!r} cannot be written: {reason}; choose another place") from error


def _planned(text: str, overwrite: bool) -> Output:
    place = Path(text)
    check_name(place)
    suffix = place.suffix.lower()
    if text.endswith(("/", os.sep)) or place.is_dir() or not suffix:
        kind = "folder"
    elif suffix in KINDS:
        kind = KINDS[suffix]
    else:
        raise UserError(
            f"`output` must end in {', '.join(KINDS)}, or in '/' for a folder of frames, got {place.name!r}"
        )
    check_free(place, kind, overwrite)
    check_writable(place)
    return Output(place, kind, overwrite)


def check_free(path: Path, kind: str, overwrite: bool) -> None:
    """Raise UserError where something stands at `path` that may not be replaced."""
    if not path.exists() and not path.is_symlink():
        return
    if kind != "folder":
        if not overwrite:
            raise UserError(f"{str(path)!r} exists already; give another name or --overwrite")
        if not path.is_file():
            raise UserError(f"{str(path)!r} is no regular file and will not be replaced; give another name")
        return
    if not path.is_dir():
        raise UserError(
            f"{str(path)!r} is a file, not a folder; end the name in {', '.join(KINDS)}, or give another"
        )
    entries = [entry.name for entry in path.iterdir()]
    if entries and not overwrite:
        raise UserError(f"folder {str(path)!r} is not empty; give another name or --overwrite")
    foreign = [name for name in entries if not _FRAME_NAME.fullmatch(name)]
    if foreign:
        raise UserError(
            f"folder {str(path)!r} holds {foreign[0]!r}, which is no frame of ours; give another folder"
        )


def check_name(path: Path) -> None:
    """Raise UserError for a name that no file system takes, or that neither FFmpeg nor a sidecar can hold."""
    for name in path.parts:
        size = len(os.fsencode(name))
        if size > MAX_NAME_BYTES:
            raise UserError(
                f"`output` must have names of at most {MAX_NAME_BYTES} bytes, got {size} in {name[:40]!r}...; "
                "give a shorter one"
            )
        if not name.isascii() and name.encode(errors="ignore").decode() != name:
            raise UserError(f"`output` must be a name in UTF-8, got {name[:60]!r}; give another")


def check_writable(path: Path) -> None:
    """Raise UserError if no file can be made at `path`, whose folders are made where missing.

    It tries, in the first folder that exists: permissions alone do not tell.
    """
    parent = next(one for one in path.absolute().parents if one.exists())
    if not parent.is_dir():
        raise UserError(f"{str(path)!r} cannot be written: {str(parent)!r} is a file; choose another folder")
    probe = temporary_sibling(parent / path.name)
    try:
        probe.touch(exist_ok=False)
    except OSError as error:
        raise UserError(
            f"{str(path)!r} cannot be written: {error.strerror or error}; choose another folder"
        ) from error
    finally:  # also after Ctrl-C
        with suppress(OSError):
            probe.unlink()


def check_fps(fps: Any) -> Fraction:
    """Frames a second as a fraction. Raises UserError outside 0 to 1000."""
    try:
        value = Fraction(fps).limit_denominator(1001)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"`fps` must be a number of frames a second, got {fps!r}; 24 is usual") from error
    if isinstance(fps, bool) or not 0 < value <= 1000:
        raise UserError(f"`fps` must be above 0 and at most 1000 frames a second, got {fps!r}; 24 is usual")
    return value


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    fps: float | Fraction = 24,
    *,
    num_frames: int | None = None,
    overwrite: bool = False,
    marks: Marks | None = None,
) -> Path:
    """Write frames (H, W, 3) uint8, taken one at a time, to a file or folder of any of the KINDS; see plan_output.

    marks: what the file says of its making (ea_runtime.video.marks); None: nothing.
    Raises UserError for a name that cannot be written, before the first frame is asked for.
    """
    if not isinstance(frames, Iterable):
        raise UserError(
            f"`frames` must be arrays (height, width, 3) of uint8, one by one, got {frames!r:.60}"
        )
    output = plan_output(path, overwrite)
    with output.writer(fps, num_frames, marks) as write:
        for frame in frames:
            write(frame)
    return output.path


def _quietly(action: Callable[[], None] | None) -> None:
    """Run what may fail because something else failed before; that one is the error to tell."""
    if action is not None:
        try:
            action()
        except Exception:
            return
