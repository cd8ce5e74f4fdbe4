"""Conversion without its child process: what is converted, where it goes, and that nothing half-written stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from ea_runtime.errors import UserError
from ea_runtime.models import convert
from ea_runtime.models.convert import convert_file, convert_folder, copy_rest

DIFFUSERS, MODEL = "diffusion_pytorch_model.safetensors", "model.safetensors"
Pairs = list[tuple[Path, Path]]


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> list[Pairs]:
    """A child that writes a tensor called like the source's stem; the pairs that it was given."""
    asked: list[Pairs] = []

    def run(pairs: Pairs) -> list[dict[str, Any]]:
        asked.append(pairs)
        for source, target in pairs:
            save_file({source.stem: torch.ones(3)}, target)
        return [{"tensors": 1, "skipped": ["epoch", 7]} for _ in pairs]

    monkeypatch.setattr(convert, "_run_child", run)
    return asked


def model(folder: Path, *names: str) -> Path:
    """A model folder with these files, one byte each."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


# --- which files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["vae/last.ckpt"], [("vae/last.ckpt", f"vae/{DIFFUSERS}")]),
        (["vae/last.ckpt", "vae/pytorch_model.bin"], [("vae/pytorch_model.bin", f"vae/{DIFFUSERS}")]),
        (
            ["vae/a.pt", "vae/diffusion_pytorch_model.bin"],
            [("vae/diffusion_pytorch_model.bin", f"vae/{DIFFUSERS}")],
        ),
        (["text_encoder/x.bin"], [("text_encoder/x.bin", f"text_encoder/{MODEL}")]),
        (["image_encoder/x.bin"], [("image_encoder/x.bin", f"image_encoder/{MODEL}")]),
        (
            ["transformer/x.bin", "vae/y.bin", "other/z.bin", "vae/config.json"],
            [("vae/y.bin", f"vae/{DIFFUSERS}"), ("transformer/x.bin", f"transformer/{DIFFUSERS}")],
        ),
        (["vae/x.bin", "vae/y.safetensors"], []),
        (["vae/x.bin", "vae/y.safetensors.index.json"], []),
        (["vae/config.json"], []),
    ],
)
def test_the_pickles_of_a_folder_and_their_new_names(
    tmp_path: Path, child: list[Pairs], names: list[str], pairs: list[tuple[str, str]]
) -> None:
    folder = model(tmp_path / "model", *names)
    written = convert_folder(folder)
    assert [
        (str(one.source.relative_to(folder)), str(one.target.relative_to(folder))) for one in written
    ] == pairs
    assert files_of(folder) == sorted([*names, *(new for _, new in pairs)])
    assert len(child) == bool(pairs)  # all in one process
    for one in written:
        assert (one.num_tensors, one.num_bytes, one.skipped) == (1, 12, ("epoch", "7"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "names",
    [["vae/a.ckpt", "vae/b.ckpt"], ["vae/diffusion_pytorch_model.bin", "vae/pytorch_model.bin"],
     ["vae/a.bin.index.json", "vae/b.bin.index.json"]],
)  # fmt: skip
def test_several_candidates_are_the_users_choice(
    tmp_path: Path, child: list[Pairs], names: list[str]
) -> None:
    line = refused(convert_folder, model(tmp_path, *names))
    assert "vae of model folder" in line
    assert "convert the right one alone: `ea models convert FILE -o FOLDER`" in line
    assert not child


def test_at_most_three_candidates_are_named(tmp_path: Path, child: list[Pairs]) -> None:
    line = refused(convert_folder, model(tmp_path, *(f"vae/{n}.ckpt" for n in "abcd")))
    assert "('a.ckpt', 'b.ckpt', 'c.ckpt')" in line


def test_a_folder_called_like_a_pickle_is_none(tmp_path: Path, child: list[Pairs]) -> None:
    folder = model(tmp_path, "vae/real.ckpt")
    (folder / "vae" / "folder.ckpt").mkdir()
    assert [one.source.name for one in convert_folder(folder)] == ["real.ckpt"]


# --- shards --------------------------------------------------------------------------------------------------


def sharded(folder: Path, weight_map: Any) -> Path:
    model(folder, "text_encoder/p-2.bin", "text_encoder/p-1.bin")
    (folder / "text_encoder" / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )
    return folder


def test_shards_are_numbered_and_indexed(tmp_path: Path, child: list[Pairs]) -> None:
    folder = sharded(tmp_path / "model", {"p-2": "p-2.bin", "p-1": "p-1.bin"})
    written = convert_folder(folder)
    new = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [(one.source.name, one.target.name) for one in written] == [
        ("p-1.bin", new[0]),
        ("p-2.bin", new[1]),
    ]
    text = (folder / "text_encoder" / f"{MODEL}.index.json").read_text(encoding="utf-8")
    assert (
        text
        == json.dumps(
            {"metadata": {"total_size": 24}, "weight_map": {"p-1": new[0], "p-2": new[1]}}, indent=2
        )
        + "\n"
    )


def test_an_index_must_fit_what_its_files_hold(tmp_path: Path, child: list[Pairs]) -> None:
    folder = sharded(tmp_path / "model", {"p-1": "p-1.bin", "gone": "p-2.bin", "lost": "p-2.bin"})
    before = files_of(folder)
    assert "names 2 tensors that its files do not hold, first 'gone'; download it again" in refused(
        convert_folder, folder
    )
    assert files_of(folder) == before


@pytest.mark.parametrize("name", ["none.bin", "x.json", "../p-1.bin", "text_encoder/p-1.bin"])
def test_an_index_names_pickles_next_to_it(tmp_path: Path, child: list[Pairs], name: str) -> None:
    folder = sharded(model(tmp_path, "text_encoder/x.json"), {"p-1": "p-1.bin", "a": name})
    assert "must name weight files next to it, got" in refused(convert_folder, folder)
    assert not child


# --- where it goes -------------------------------------------------------------------------------------------


def test_a_new_folder_gets_the_rest_as_it_is(tmp_path: Path, child: list[Pairs]) -> None:
    folder = model(
        tmp_path / "model", "vae/x.bin", "vae/config.json", "tokenizer/deep/a.json", "note.txt",
        "transformer/old.bin.index.json", "transformer/model.safetensors", "transformer/old.ckpt",
    )  # fmt: skip
    (folder / "empty").mkdir()
    before = files_of(folder)
    out = tmp_path / "new" / "out"
    (written,) = convert_folder(folder, out)
    assert written.target == out / "vae" / DIFFUSERS
    assert files_of(out) == [
        "note.txt",
        "tokenizer/deep/a.json",
        "transformer/model.safetensors",
        "vae/config.json",
        f"vae/{DIFFUSERS}",
    ]
    assert files_of(folder) == before
    assert convert_folder(model(tmp_path / "plain", "vae/config.json"), tmp_path / "copy") == []
    assert files_of(tmp_path / "copy") == ["vae/config.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="links are POSIX's")
def test_links_within_a_folder_are_copied_and_others_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", "vae/config.json")
    (folder / "link.json").symlink_to(folder / "vae" / "config.json")
    (tmp_path / "out").mkdir()
    copy_rest(folder, tmp_path / "out")
    assert files_of(tmp_path / "out") == ["link.json", "vae/config.json"]
    assert not (tmp_path / "out" / "link.json").is_symlink()
    for target in ("/etc/hostname", "/etc"):
        (folder / "secret").symlink_to(target)
        assert "secret" in refused(copy_rest, folder, tmp_path / "out")
        (folder / "secret").unlink()


@pytest.mark.parametrize(
    ("out", "target"),
    [
        (None, "last.safetensors"),
        ("x/y/own.safetensors", "x/y/own.safetensors"),
        ("folder", f"folder/{DIFFUSERS}"),
    ],
)
def test_one_file_goes_where_it_is_sent(
    tmp_path: Path, child: list[Pairs], out: str | None, target: str
) -> None:
    source = model(tmp_path, "last.ckpt") / "last.ckpt"
    done = convert_file(source, None if out is None else tmp_path / out)
    assert (done.source, done.target, done.num_tensors) == (source, tmp_path / target, 1)
    assert files_of(tmp_path) == sorted(["last.ckpt", target])
    assert "exists already; remove it or give another --output" in refused(
        convert_file, source, None if out is None else tmp_path / out
    )


def test_a_place_that_cannot_be_written_leaves_nothing_of_the_others(
    tmp_path: Path, child: list[Pairs], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(tmp_path / "model", "vae/x.bin", "transformer/x.bin", "text_encoder/x.bin")
    before, real = files_of(folder), os.replace

    def replace(source: Path, target: Path) -> None:
        if target == folder / "vae" / DIFFUSERS:
            (folder / "text_encoder" / MODEL).unlink()  # by somebody else
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(convert.os, "replace", replace)
    with pytest.raises(PermissionError):
        convert_folder(folder)
    assert files_of(folder) == before
    assert sorted(path.name for path in folder.iterdir()) == ["text_encoder", "transformer", "vae"]


# --- the child -----------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    folder = model(tmp_path, "a.bin", "b.bin")
    return [(folder / f"{name}.bin", folder / f"{name}.safetensors") for name in "ab"]


def answering(
    monkeypatch: pytest.MonkeyPatch,
    pairs: Pairs,
    stdout: bytes,
    code: int = 0,
    stderr: bytes = b"",
    targets: int = 2,
) -> list[Any]:
    """Makes the child answer so; the calls of it."""
    calls: list[Any] = []

    def run(command: list[str], **options: Any) -> Any:
        calls.append((command, options))
        for _, target in pairs[:targets]:
            target.write_bytes(save({"w": torch.ones(1)}))
        return SimpleNamespace(stdout=stdout, stderr=stderr, returncode=code)

    monkeypatch.setattr(convert.subprocess, "run", run)
    return calls


GOOD = b'{"tensors": 1}\n{"tensors": 2}\n'


def test_the_child_has_no_device_no_input_and_no_working_folder_to_import_from(
    monkeypatch: pytest.MonkeyPatch, pairs: Pairs
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("KEPT", "1")
    calls = answering(monkeypatch, pairs, GOOD)
    assert convert._run_child(pairs) == [{"tensors": 1}, {"tensors": 2}]
    ((command, options),) = calls
    assert command[:4] == [sys.executable, "-P", "-m", "ea_runtime.models.convert_child"]
    assert command[4:] == [str(path.resolve()) for pair in pairs for path in pair]
    environment = options.pop("env")
    assert options == {
        "stdin": subprocess.DEVNULL,
        "capture_output": True,
        "timeout": pytest.approx(120, abs=1e-3),
        "check": False,
    }
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["OMP_NUM_THREADS"]) == ("", "1")
    assert environment["KEPT"] == "1"
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in environment


def test_a_large_file_gets_more_time(monkeypatch: pytest.MonkeyPatch, pairs: Pairs) -> None:
    """Two minutes, and a second for 5 MiB."""
    os.truncate(pairs[0][0], 50 << 20)  # takes no disk
    calls = answering(monkeypatch, pairs, GOOD)
    convert._run_child(pairs)
    assert calls[0][1]["timeout"] == pytest.approx(130, abs=1e-3)

    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(convert.subprocess, "run", hang)
    assert "a.bin' took more than 130 s and was stopped; nothing was written" in refused(
        convert._run_child, pairs
    )


@pytest.mark.parametrize(
    ("stdout", "code", "stderr", "targets", "message"),
    [
        (GOOD, 1, b"", 2, "b.bin' was not converted: the process that read it ended with code 1; get the weights"),
        (GOOD, 0, b"", 1, "b.bin' was not converted: the process that read it ended with code 0"),
        (b'{"tensors": 1}\n', 0, b"", 2, "b.bin' was not converted: the process that read it ended with code 0"),
        (b"", -9, b"x\ny\nKilled\n", 0, "a.bin' was not converted: the process that read it ended with code -9 ('Kill"),
        (b'{"error": "it is odd"}\n', 1, b"x", 0, "a.bin' was not converted: it is odd; get the weights"),
        (b'{"tensors": 1}\n{"error": "odd"}\n', 0, b"", 2, "b.bin' was not converted: odd"),
        (b'noise\n[1]\n{"tensors": 1}\n' + b"[" * 100_000 + b"\n", 0, b"", 2, "b.bin' was not converted"),
    ],
)  # fmt: skip
def test_what_the_child_says_and_how_it_ended(
    monkeypatch: pytest.MonkeyPatch,
    pairs: Pairs,
    stdout: bytes,
    code: int,
    stderr: bytes,
    targets: int,
    message: str,
) -> None:
    answering(monkeypatch, pairs, stdout, code, stderr, targets)
    assert message in refused(convert._run_child, pairs)


def test_a_child_that_talks_is_cut(monkeypatch: pytest.MonkeyPatch, pairs: Pairs) -> None:
    """It is not trusted: after a megabyte nothing counts, and what it wrote is read again."""
    assert convert._MAX_OUTPUT == 1 << 20
    answering(monkeypatch, pairs, b" " * ((1 << 20) - 15) + b"\n" + GOOD)
    assert "b.bin' was not converted" in refused(convert._run_child, pairs)
    answering(monkeypatch, pairs, GOOD + b'{"tensors": 3}\n')
    assert convert._run_child(pairs) == [{"tensors": 1}, {"tensors": 2}]  # not more than was asked for
    for target, skipped in ((b"x", []), (save({"w": torch.ones(1)}), "all")):
        monkeypatch.setattr(
            convert,
            "_run_child",
            lambda _, target=target, skipped=skipped: [{"tensors": 9, "skipped": skipped}],
        )
        pairs[0][1].write_bytes(target)
        if target == b"x":
            assert "is damaged" in refused(convert._convert_files, pairs[:1])
        else:
            (done,) = convert._convert_files(pairs[:1])
            assert (done.num_tensors, done.num_bytes, done.skipped) == (1, 4, ())
            with pytest.raises(AttributeError):
                done.num_tensors = 2  # pyright: ignore[reportAttributeAccessIssue]
            with pytest.raises(AttributeError):
                convert._PartFiles("vae", ()).part = "b"  # pyright: ignore[reportAttributeAccessIssue]
