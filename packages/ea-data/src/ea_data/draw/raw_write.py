"""Writes a folder of raw video with known truth, and `ea data draw-raw`.

0000-scenes.mp4 0001-copy.mp4 ...   H.264, a few seconds each
0000-scenes.txt ...                 a caption next to each, for the captioner `folder`
truth.jsonl                         one line per video: cuts, speeds, text areas, and which filter should drop it
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

#: smooths drawn grain, which otherwise changes from frame to frame as much as a cut does
GRAIN_CRF = 25


def write_raw(
    folder: str | Path,
    num_videos: int,
    seed: int = 0,
    height: int = 270,
    width: int = 480,
    fps: int = 24,
    on_item: Callable[[int], None] | None = None,
) -> None:
    """Draws videos 0 .. num_videos - 1 of the set of `seed` into `folder`, which must be absent or empty.

    `on_item(number)` is called after each with the number written so far. Raises ValueError for counts and sizes that
    cannot be drawn and for a folder in use; no partial files stay behind.
    """
    from ea_data.draw.raw import render_video, sample_video
    from ea_runtime.errors import writing
    from ea_runtime.files.atomic import new_folder
    from ea_runtime.video.writers import Mp4Writer

    if num_videos < 1:
        raise ValueError(f"`num_videos` must be 1 or more, got {num_videos}")
    videos = (sample_video(seed, index, height, width, fps) for index in range(num_videos))
    # reports sizes that cannot be drawn before a folder is made
    first = sample_video(seed, 0, height, width, fps)
    digits = max(4, len(str(num_videos - 1)))
    target = Path(folder).resolve()
    with (
        writing(target, "name another folder"),
        new_folder(target, "folder") as temporary,
        (temporary / "truth.jsonl").open("w", encoding="utf-8") as truth,
    ):
        for number, video in enumerate(videos, start=1):
            name = f"{video.index:0{digits}d}-{video.kind}"
            writer = Mp4Writer(temporary / f"{name}.mp4", Fraction(first.fps), None)
            writer.crf = GRAIN_CRF if video.kind == "grain" else writer.crf
            for frame in render_video(video):
                writer.add(frame)
            writer.finish()
            caption = video.scenes[0].caption()
            (temporary / f"{name}.txt").write_text(caption + "\n", encoding="utf-8")
            truth.write(json.dumps(video.truth(f"{name}.mp4")) + "\n")
            if on_item is not None:
                on_item(number)


@app.command("draw-raw")
def draw_raw(
    num_videos: Annotated[int, typer.Argument(help="How many videos; 11 show each kind once.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder to make; it must be absent or empty.")],
    seed: Annotated[int, typer.Option(help="Equal seeds give equal videos.")] = 0,
    height: Annotated[int, typer.Option(help="Pixels, even.")] = 270,
    width: Annotated[int, typer.Option(help="Pixels, even.")] = 480,
    fps: Annotated[int, typer.Option(help="Frames per second.")] = 24,
) -> None:
    """Draw raw video with known truth (cuts, pans, text, blur, copies) to try `ea data run` on."""
    from rich.progress import Progress

    from ea_runtime.machine.terminal import make_console

    with Progress(console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task("drawing", total=num_videos)
        size = (height, width, fps)
        write_raw(out, num_videos, seed, *size, lambda done: progress.update(task, completed=done))
    typer.echo(f"drew {num_videos} raw videos into {out}", err=True)
