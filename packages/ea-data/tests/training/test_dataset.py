"""The set `easyanimate`: samples as functions of (index, seed, bucket), bad files counted, nothing opened outside."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ea_data.children.supervisor import Supervisor
from ea_data.media.reader import Cut, probe, read
from ea_data.training.dataset import EasyAnimateSet
from ea_runtime.errors import UserError
from ea_runtime.settings import validate
from ea_runtime.training.data.dataset import BadSample, Bucket, SetOptions, fetch_samples, open_set, to_float
from ea_runtime.video.reader import read_frames

Open = Callable[..., EasyAnimateSet]


@pytest.fixture(scope="module")
def files(clips: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures and three clips of 40, 20 and 5 frames."""
    folder = tmp_path_factory.mktemp("files")
    clips.write_picture(folder / "0.png")
    clips.write_picture(folder / "1.png", 64, 64)
    for number, count in enumerate((40, 20, 5)):
        clips.write_clip(folder / f"{number}.mp4", count)
    return folder


@pytest.fixture
def data(files: Path, clips: ModuleType, tmp_path: Path) -> Open:
    """data(**options): the set of those files; their list tells neither sizes nor numbers of frames."""
    folder = tmp_path / "set"
    shutil.copytree(files, folder)
    clips.write_list(folder, *({"file_path": n} for n in ("0.png", "1.png", "0.mp4", "1.mp4", "2.mp4")))

    def make(**options: Any) -> EasyAnimateSet:
        return EasyAnimateSet(
            SetOptions(**{"path": str(folder), "num_frames": 18, "decode": "inline", **options})
        )

    return make


def test_buckets(data: Open) -> None:
    clip, picture = Bucket("video", 18, 32, 48), Bucket("image", 1, 32, 48)
    assert data().buckets() == [picture, Bucket("image", 1, 64, 64), clip, clip, Bucket("video", 1, 32, 48)]
    assert data().buckets(num_frames=9)[2:] == [Bucket("video", 9, 32, 48)] * 2 + [Bucket("video", 1, 32, 48)]
    assert data(middle=0.5).buckets()[2:4] == [clip, Bucket("video", 9, 32, 48)]
    assert data(stride=3).buckets()[2].num_frames == 9
    assert data().buckets(size=64)[0] == Bucket("image", 1, 48, 64)  # 0.67 is nearest to 416 / 608
    assert [len(data(kinds=kind)) for kind in ("both", "videos", "pictures")] == [5, 3, 2]
    assert len(data(kinds="videos", limit=2)) == 2
    repeated = data(repeat_videos=3)
    assert len(repeated) == 2 + 9
    assert repeated.item(5) == repeated.item(2)


def test_what_is_behind_a_transparent_picture(clips: ModuleType, tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (200, 10, 10, 0)).save(tmp_path / "0.png")
    clips.write_list(tmp_path, {"file_path": "0.png"})
    for background, colour in ((None, (255, 255, 255)), ("black", (0, 0, 0)), ("#0a78c8", (10, 120, 200))):
        for decode in ("inline", "child"):
            data = EasyAnimateSet(SetOptions(path=str(tmp_path), decode=decode, background=background))
            try:
                assert tuple(data.sample(0, 0, data.buckets()[0]).frames[0, 0, 0]) == colour
            finally:
                data.close()
    with pytest.raises(UserError, match=r"`background`: must be a colour such as .*, got 'wite'"):
        validate(SetOptions, {"path": "set", "background": "wite"}, "[data]")


def test_no_kind_of_it(data: Open, tmp_path: Path) -> None:
    (tmp_path / "set" / "dataset.json").write_text('[{"file_path": "0.png", "text": "a", "type": "image"}]')
    with pytest.raises(UserError, match=r"`data.kinds` is 'videos', but .* has none"):
        data(kinds="videos")


def test_the_host_finds_it(data: Open, tmp_path: Path) -> None:
    assert isinstance(open_set(SetOptions(path=str(tmp_path / "set"), decode="inline")), EasyAnimateSet)
    with pytest.raises(UserError, match="easyanimate"):
        open_set(SetOptions(path=str(tmp_path / "set"), format="easyanimat"))


@pytest.mark.parametrize("keep_mib", [0, 100])
def test_samples_are_functions_of_their_arguments(
    keep_mib: int, data: Open, tmp_path: Path, clips: ModuleType
) -> None:
    """Whatever is kept, whatever was read before, and in a copy; they are the file's own frames, bit for bit."""
    first = data(keep_mib=keep_mib)
    buckets = first.buckets()
    whole = np.stack(list(read_frames(tmp_path / "set" / "0.mp4")))
    starts = set()
    for seed in range(6):
        sample = first.sample(2, seed, buckets[2])
        assert np.array_equal(sample.frames, whole[sample.start : sample.start + 18])
        assert sample.text == "sample 2"
        starts.add(sample.start)
        for other in (first, data(keep_mib=100 - keep_mib), pickle.loads(pickle.dumps(first))):
            again = other.sample(2, seed, buckets[2])
            assert np.array_equal(again.frames, sample.frames)
            assert again.start == sample.start
    assert len(starts) > 2
    assert starts <= set(first.starts(2, buckets[2])) == set(range(23))
    assert first.sample(4, 0, buckets[4]).frames.shape == (1, 32, 48, 3)


def test_crops(data: Open) -> None:
    square = Bucket("video", 9, 32, 32)
    centre, drawn = data(), data(crop="random", keep_mib=100)
    whole = drawn.sample(2, 0, Bucket("video", 9, 32, 48))
    lefts = set()
    for seed in range(8):
        sample = drawn.sample(2, seed, square)
        again = data(crop="random").sample(2, seed, square)
        assert np.array_equal(sample.frames, again.frames)
        lefts.add(int((sample.frames[0, 0, :, 0] > 150).sum()))
        assert centre.sample(2, seed, square).start == sample.start
    assert len(lefts) > 2
    assert whole.frames.shape == (9, 32, 48, 3)
    assert np.array_equal(
        centre.read(2, 5, square)[0], centre.read(2, 5, Bucket("video", 9, 32, 48))[0][:, 8:40]
    )


def test_small_clips_are_decoded_once_and_room_is_bounded(
    data: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ea_data.training.dataset

    cuts: list[Cut] = []
    monkeypatch.setattr(ea_data.training.dataset, "read", lambda cut: cuts.append(cut) or read(cut))
    it = data(keep_mib=100)
    bucket = it.buckets()[2]
    for seed in range(5):
        it.sample(2, seed, bucket)
    assert [cut.num_frames for cut in cuts] == [40]
    cuts.clear()
    it = data(keep_mib=0)
    it.sample(2, 0, bucket)
    assert [cut.num_frames for cut in cuts] == [18], "the window alone"
    it = data(keep_mib=1)  # room for 7 clips of 40 frames; this one and a smaller copy of it
    it._room = 40 * 32 * 48 * 3
    for size in ((32, 48), (16, 32)):
        it.sample(2, 0, Bucket("video", 18, *size))
    assert len(it._kept) == 1


def test_headers_are_read_once(data: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ea_data.training.dataset

    expected = data().buckets()
    probed: list[Path] = []
    inner = ea_data.training.dataset.probe

    def probe(path: Path, root: Path, with_size: bool) -> Any:
        probed.append(path)
        return inner(path, root, with_size)

    monkeypatch.setattr(ea_data.training.dataset, "probe", probe)
    assert data().buckets() == expected
    assert probed == []
    os.utime(tmp_path / "set" / "0.mp4")
    assert data().buckets() == expected
    assert [path.name for path in probed] == ["0.mp4"]
    (tmp_path / "set" / "cache" / "headers.json").write_text("[" * 1000)
    assert data().buckets() == expected
    assert len(probed) == 6


@pytest.mark.parametrize("decode", ["inline", "child"])
def test_sizes_from_before_the_rotation(
    decode: str, files: Path, clips: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phones store pictures on their side; some tools list the size that is stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    names = [f"{i}.jpg" for i in range(100)]
    for number, name in enumerate(names):
        # the last three of four are on their side
        turned = {"exif": exif} if number % 4 else {}
        Image.new("RGB", (96, 64), (200, 10, 10)).save(tmp_path / name, **turned)
    rows = [{"file_path": name, "width": 96, "height": 64} for name in names]
    data = EasyAnimateSet(SetOptions(path=str(clips.write_list(tmp_path, *rows)), decode=decode))
    try:
        buckets = data.buckets()
        assert buckets[:4] == [Bucket("image", 1, 64, 96)] + [Bucket("image", 1, 96, 64)] * 3
        batch = fetch_samples(data, [i for i in range(100) if i % 4], 0, buckets[1])
        assert batch.bad == []
        assert batch.tensors["frames"].shape == (75, 1, 96, 64, 3)
        assert len(data.remarks()) == 1
        assert "before the rotation" in data.remarks()[0]
    finally:
        data.close()
    # upright, and the list is right: a few headers are read, and the list is believed
    for name in names:
        Image.new("RGB", (96, 64)).save(tmp_path / name)
    (tmp_path / "cache" / "headers.json").unlink()
    monkeypatch.setattr("ea_data.training.dataset.probe", lambda *task: looked.append(task) or probe(*task))
    looked: list[Any] = []
    data = EasyAnimateSet(SetOptions(path=str(tmp_path), decode="inline"))
    assert set(data.buckets()) == {Bucket("image", 1, 64, 96)}
    assert len(looked) == 32
    assert data.remarks() == []
    Image.new("RGB", (96, 20)).save(tmp_path / "50.jpg")
    clips.write_list(tmp_path, {"file_path": "50.jpg"}, {"file_path": "51.jpg"})
    data = EasyAnimateSet(SetOptions(path=str(tmp_path), decode="inline"))
    data.buckets()
    assert data.remarks() == ["1 of 2 files have a side below 32 pixels and are enlarged"]


def test_a_set_that_cannot_be_written(data: Open, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set" / "cache").symlink_to(tmp_path / "elsewhere")
    assert len(data().buckets()) == 5
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_bad_files_are_counted_exactly(share: float, clips: ModuleType, tmp_path: Path) -> None:
    """Each bad file costs its own sample, in every epoch, with its path and a line; the others are untouched."""
    rng = np.random.default_rng(3)
    count = 100
    bad = set(rng.permutation(count)[: round(share * count)].tolist())
    for number in range(count):
        path = clips.write_picture(tmp_path / f"{number}.png", 16, 16, number % 30)
        if number in bad:
            kind = number % 4
            path.unlink()
            if kind:
                path.write_bytes((b"", b"", b"noise", b"\x89PNG\r\n\x1a\n")[kind])
    clips.write_list(tmp_path, *({"file_path": f"{i}.png"} for i in range(count)))
    data = EasyAnimateSet(SetOptions(path=str(tmp_path), decode="inline"))
    buckets = data.buckets()
    assert len(set(buckets)) == 1
    batch = fetch_samples(data, list(range(count)), 0, buckets[0])
    assert {index for index, _, _ in batch.bad} == bad
    assert {path for _, path, _ in batch.bad} == {f"{i}.png" for i in bad}
    assert all(reason.startswith("it ") and "\n" not in reason for _, _, reason in batch.bad)
    assert batch.indices == [i for i in range(count) if i not in bad]
    assert batch.tensors["frames"].shape == (count - len(bad), 1, 16, 16, 3)
    assert batch.tensors["captions"] == [f"sample {i}" for i in batch.indices]
    assert to_float(batch.tensors["frames"]).shape == (count - len(bad), 3, 1, 16, 16)


# -- children


def misbehave(task: Any) -> Any:
    """Stands in for the reader in a child: file names say what goes wrong."""
    import signal
    import time

    name = task.path.name if isinstance(task, Cut) else Path(task[0]).name
    if isinstance(task, Cut) and name.startswith("segv"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if isinstance(task, Cut) and name.startswith("hang"):
        time.sleep(60)
    if isinstance(task, Cut) and name.startswith("exit"):
        os._exit(3)
    from ea_data.media.reader import serve

    return serve(task)


_TARGET = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("misbehaving", {file!r})
module = importlib.util.module_from_spec(spec)
sys.modules["misbehaving"] = module
spec.loader.exec_module(module)
misbehave = module.misbehave
"""


def test_what_kills_or_stops_its_decoder_costs_its_own_sample(
    clips: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{kind}{i}.png" for i, kind in enumerate(("good", "segv", "good", "hang", "exit", "good"))]
    for name in names:
        clips.write_picture(tmp_path / name, 16, 16)
    clips.write_list(tmp_path, *({"file_path": name} for name in names))
    (tmp_path / "bridge.py").write_text(_TARGET.format(file=__file__))
    monkeypatch.syspath_prepend(tmp_path)
    data = EasyAnimateSet(SetOptions(path=str(tmp_path), decode="child", timeout=1.0))
    buckets = data.buckets()
    data.close()
    data._child, data._owner = Supervisor("bridge:misbehave", timeout=1.0), os.getpid()
    try:
        for _ in range(2):  # the second time, no child is risked
            batch = fetch_samples(data, list(range(6)), 0, buckets[0])
            assert batch.indices == [0, 2, 5]
            assert [(i, path) for i, path, _ in batch.bad] == [(i, names[i]) for i in (1, 3, 4)]
            assert [reason for _, _, reason in batch.bad] == [
                "its process died of SIGSEGV",
                "it took longer than 1 s",
                "its process left with exit code 3",
            ]
        assert data._child.quarantined == 3
    finally:
        data.close()


def test_a_child_reads_what_this_process_reads(data: Open) -> None:
    with_child, inline = data(decode="child", keep_mib=0), data(keep_mib=0)
    try:
        buckets = with_child.buckets()
        assert buckets == inline.buckets()
        for index in range(5):
            one, other = (it.sample(index, 3, buckets[index]) for it in (with_child, inline))
            assert np.array_equal(one.frames, other.frames)
        with pytest.raises(BadSample, match=r"2.mp4: it has no frame 5"):
            with_child.read(4, 0, Bucket("video", 9, 32, 48))
    finally:
        with_child.close()


def test_a_forked_worker_has_a_child_of_its_own(data: Open) -> None:
    """As the loop's workers are: daemons that were forked while this process's child was running."""
    it = data(decode="child", keep_mib=0)
    try:
        bucket = it.buckets()[2]
        expected = it.sample(2, 1, bucket).frames
        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()
        worker = context.Process(target=lambda: results.put(it.sample(2, 1, bucket).frames), daemon=True)
        worker.start()
        assert np.array_equal(results.get(), expected)
        worker.join(30)
        assert worker.exitcode == 0
        assert np.array_equal(it.sample(2, 1, bucket).frames, expected)
    finally:
        it.close()


# -- nothing outside is opened

_watched: list[list[str]] = []


def _watch(event: str, args: Any) -> None:
    if event == "open" and _watched:
        _watched[-1].append(str(args[0]))


@cache
def _watch_opens() -> None:
    """Once: an audit hook stays as long as the process."""
    sys.addaudithook(
        lambda event, args: _watched[-1].append(str(args[0])) if event == "open" and _watched else None
    )


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The paths that this process opens meanwhile."""
    _watch_opens()
    _watched.append([])
    yield _watched[-1]
    _watched.pop()


def hostile_entries(outside: Path) -> list[str]:
    """300 names that lead out of a set, or would with a reader that takes names for more than names."""
    secret = f"{outside}/secret.mp4"
    schemes = (
        "file",
        "http",
        "https",
        "ftp",
        "concat",
        "subfile",
        "data",
        "pipe",
        "crypto",
        "tcp",
        "async",
        "cache",
    )
    names = [secret, "/etc/passwd", "/proc/self/environ", "/dev/zero", "a/../../outside/secret.mp4"]
    names += [f"{'../' * depth}outside/secret.mp4" for depth in range(1, 30)]
    names += [f"{scheme}:{slashes}{secret}" for scheme in schemes for slashes in ("", "/", "//", "///")]
    names += [f"concat:{secret}|0.png", f"subfile,,start,0,end,0,,:{secret}", f"lavfi:movie={secret}"]
    names += [
        "..",
        ".",
        "",
        "a\0b",
        "\\\\host\\share",
        "..\\outside\\secret.mp4",
        "~/secret.mp4",
        "$HOME/secret.mp4",
    ]
    names += ["-i", "%2e%2e/secret.mp4", "*.mp4"]
    names += [f"link{i}/secret.mp4" for i in range(20)]
    names += [f"file{i}.mp4" for i in range(60)] + [f"list{i}.mp4" for i in range(60)]
    return names + [f"chain{i}.mp4" for i in range(300 - len(names))]


def test_three_hundred_hostile_entries_open_nothing_outside(
    clips: ModuleType, tmp_path: Path, opened: list[str]
) -> None:
    folder, outside = tmp_path / "set", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    clips.write_clip(outside / "secret.mp4", 3)
    clips.write_picture(folder / "0.png", 16, 16)
    names = hostile_entries(outside)
    assert len(names) == 300
    lists = (
        "ffconcat version 1.0\nfile '{}'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
        "<?xml version='1.0'?><MPD><Period><AdaptationSet><Representation><BaseURL>{}</BaseURL>"
        "</Representation></AdaptationSet></Period></MPD>",
    )
    for number, name in enumerate(names):
        if name.startswith("link"):
            (folder / name.split("/")[0]).symlink_to(outside)
        elif name.startswith("file") and ":" not in name:
            (folder / name).symlink_to(outside / "secret.mp4")
        elif name.startswith("list"):
            (folder / name).write_text(lists[number % 3].format(outside / "secret.mp4"))
        elif name.startswith("chain"):
            (folder / f"{name}.step").symlink_to("../outside/secret.mp4")
            (folder / name).symlink_to(f"{name}.step")
    refused = bad = 0
    for name in names:
        clips.write_list(folder, {"file_path": name, "type": "video"}, {"file_path": "0.png"})
        opened.clear()
        batch = None
        with suppress(UserError):
            data = EasyAnimateSet(SetOptions(path=str(folder), decode="inline"))
            batch = fetch_samples(data, [0], 0, data.buckets()[0])
        if batch is None:
            refused += 1
        else:
            assert len(batch) == 0
            bad += 1
        for path in opened:
            assert str(outside) not in os.path.realpath(path)
            assert not path.startswith(("/etc", "/proc", "/dev"))
    assert refused + bad == 300
    assert bad >= 60, "lists are found out by their contents"


def test_a_reader_that_takes_names_would_be_found_out(
    clips: ModuleType, tmp_path: Path, opened: list[str]
) -> None:
    """The broken twin: the same watch sees an open outside."""
    (tmp_path / "outside").mkdir()
    secret = clips.write_clip(tmp_path / "outside" / "secret.mp4", 3)
    (tmp_path / "link.mp4").symlink_to(secret)
    assert len(list(read_frames(tmp_path / "link.mp4"))) == 3
    assert [path for path in opened if str(tmp_path / "outside") in os.path.realpath(path)]
