"""Which files are opened: each layer that keeps a reader in the set's folder and away from other files, alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import psutil
import pytest

from ea_data.media import containers
from ea_data.media.containers import open_beneath, open_video, rewind
from ea_runtime.video.reader import CONTAINERS


def opened(path: Path, root: Path) -> bytes:
    with open_beneath(path, root) as file:
        return file.read()


def test_only_regular_files_beneath_the_root(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    (root / "a").write_bytes(b"within")
    (root / "link").symlink_to("a")
    (tmp_path / "secret").write_bytes(b"outside")
    (root / "out").symlink_to("../secret")
    (root / "gone").symlink_to("../nowhere")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    assert (opened(root / "a", root), opened(root / "link", root)) == (b"within", b"within")
    before = psutil.Process().num_fds()
    for name, told in (
        ("out", "it is a link that leaves the set"),
        ("../secret", "it is a link that leaves the set"),
        ("gone", "there is no such file"),
        ("nowhere", "there is no such file"),
        ("loop", "[Ss]ymlink loop|Too many levels of symbolic links"),
        ("a/b", "Not a directory"),
        ("pipe", "it is no regular file"),
        (".", "it is no regular file"),
    ):
        with pytest.raises(ValueError, match=told):
            opened(root / name, root)
    assert psutil.Process().num_fds() == before


def test_a_loop_of_links_by_either_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.13 raises an OSError where earlier ones raise a RuntimeError."""
    for error in (RuntimeError("Symlink loop"), OSError(40, "Too many levels")):

        def resolve(path: Path, strict: bool, error: Exception = error) -> Path:
            raise error

        monkeypatch.setattr(Path, "resolve", resolve)
        with pytest.raises(ValueError, match=r"Symlink loop|^Too many levels$"):
            opened(tmp_path / "a", tmp_path)


def test_a_link_that_replaces_the_file_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "set"
    root.mkdir()
    (tmp_path / "secret").write_bytes(b"outside")
    (root / "a").symlink_to("../secret")
    monkeypatch.setattr(Path, "resolve", lambda path, strict: path)  # as it was when it was looked at
    with pytest.raises(ValueError, match="Too many levels of symbolic links"):
        opened(root / "a", root)
    flags: list[int] = []
    real = os.open
    monkeypatch.setattr(containers.os, "open", lambda path, flag: (flags.append(flag), real(path, flag))[1])
    (root / "b").write_bytes(b"within")
    assert opened(root / "b", root) == b"within"
    # neither waits for a pipe's other end, nor leaves the file to a program that is started
    assert flags == [os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC]


@pytest.mark.parametrize("strict", [None, False, True])
def test_a_video_is_opened_for_these_formats_alone(
    tmp_path: Path, draw_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, strict: bool | None
) -> None:
    path = draw_video(tmp_path / "a.mp4", 3, size=(32, 48))
    asked: list[dict[str, str]] = []
    real = av.open
    monkeypatch.setattr(
        av, "open", lambda file, mode, options: (asked.append(options), real(file, mode, options=options))[1]
    )
    with (
        path.open("rb") as file,
        open_video(file, **({} if strict is None else {"strict": strict})) as (container, stream),
    ):
        assert stream.codec_context.thread_count == 1
        assert [frame.pts for frame in container.decode(stream)]
    whole = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    assert asked == [whole | ({"err_detect": "explode"} if strict else {})]


@pytest.mark.parametrize(
    ("best", "streams", "told"),
    [
        (None, [1], "it holds a cover picture and no video"),
        (None, [], "it holds no video"),
        (SimpleNamespace(codec_context=None), [1], "this build of FFmpeg has no decoder for its video"),
    ],
)
def test_files_without_a_video(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, best: Any, streams: list[int], told: str
) -> None:
    class Container:
        streams = SimpleNamespace(video=[])

        def __enter__(self) -> Container:
            return self

        def __exit__(self, *_: object) -> None:
            self.is_closed = True

    container = Container()
    container.streams.video = streams
    monkeypatch.setattr(av, "open", lambda *_, **__: container)
    monkeypatch.setattr(containers, "best_video", lambda _: best)
    (tmp_path / "a").touch()
    with (
        (tmp_path / "a").open("rb") as file,
        pytest.raises(ValueError, match=f"^{told}$"),
        open_video(file),
    ):
        pass
    assert container.is_closed


def test_rewinding_by_bytes_where_there_is_no_index() -> None:
    asked: list[Any] = []

    class Container:
        has_index = True

        def seek(self, place: int, **more: bool) -> None:
            asked.append((place, more))
            if not self.has_index and not more.get("unsupported_byte_offset"):
                raise av.PermissionError(1, "no index")

    rewind(Container())
    container = Container()
    container.has_index = False
    rewind(container)
    assert asked == [(0, {}), (0, {}), (0, {"unsupported_byte_offset": True})]
