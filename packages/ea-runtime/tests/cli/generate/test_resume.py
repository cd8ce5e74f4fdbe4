"""`ea generate --resume`: an ended run continues to the same bytes; what is there already is kept or refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ea_runtime.cli.main import run
from ea_runtime.errors import UserError
from ea_runtime.files.hashes import content_hash
from ea_runtime.generation import run_state
from ea_runtime.generation.out_of_memory import OutOfMemoryError
from ea_runtime.generation.run_files import state_folder
from ea_runtime.generation.run_state import RunState

pytest.importorskip("ea_vae")
pytest.importorskip("ea_dit")

#: of the bundled model, 1.2 s of a core for each video; WORDS take a quarter of that
TINY = [
    "generate",
    "a red circle",
    "--steps",
    "4",
    "--num-frames",
    "18",
    "--dtype",
    "float32",
    "--device",
    "cpu",
]
WORDS = [*TINY, "--model", "random"]


@pytest.fixture(autouse=True, scope="module")
def _models(random_model: Path) -> Iterator[None]:
    """`random` is the name of a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EA_MODELS_DIR", str(random_model.parent))
        yield


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to be in, and runs that save their place at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_state, "RunState", partial(RunState, first_after=0, every=0))
    return tmp_path


@pytest.fixture(scope="module")
def wanted(tmp_path_factory) -> str:
    """The hash of the undisturbed video."""
    path = tmp_path_factory.mktemp("whole") / "out.mp4"
    assert run([*WORDS, "-o", str(path)]) == 0
    return content_hash(path)


def ends(monkeypatch, phase: str, done: int, error: BaseException, prompt: int = 1) -> None:
    """The next run ends at this point of its `prompt`-th video."""
    from ea_runtime.cli.generate import progress

    shown, seen = progress.GenerationProgress.on_step, []

    def on_step(self, name: str, at: int, total: int) -> None:
        shown(self, name, at, total)
        if (name, at) == (phase, done):
            seen.append(1)
            if len(seen) == prompt:
                raise error

    monkeypatch.setattr(progress.GenerationProgress, "on_step", on_step)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (OutOfMemoryError("memory ran out"), 2), (UserError("the disk is full"), 2)],
    ids=["ctrl-c", "memory", "disk"],
)
@pytest.mark.parametrize(("phase", "done"), [("denoising", 3), ("decoding", 0), ("decoding", 11)])
def test_an_ended_run_is_continued(here, capsys, monkeypatch, wanted, phase, done, error, code):
    with monkeypatch.context() as patch:
        ends(patch, phase, done, error)
        assert run([*WORDS, "-o", "out.mp4"]) == code
    told = " ".join(capsys.readouterr().err.split())
    assert "saved in .out.mp4.ea-run: the same command with --resume continues this run" in told
    assert names(here) == [".out.mp4.ea-run"]
    assert run([*WORDS, "-o", "out.mp4", "--resume"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    found = "step 3 of 4" if phase == "denoising" else "denoised"
    assert f"continues the saved run in .out.mp4.ea-run: {found}" in told
    assert content_hash(here / "out.mp4") == wanted
    assert names(here) == ["out.json", "out.mp4"]


def test_a_full_disk_at_the_end(here, capsys, monkeypatch, wanted):
    from ea_runtime.video import writers

    def full(self):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writers.Mp4Writer, "finish", full)
        assert run([*WORDS, "-o", "out.mp4"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert names(here) == [".out.mp4.ea-run"]
    assert run([*WORDS, "-o", "out.mp4", "--resume"]) == 0
    assert content_hash(here / "out.mp4") == wanted
    assert names(here) == ["out.json", "out.mp4"]


def test_without_resume_the_saved_run_is_named_and_the_run_starts_over(here, capsys, monkeypatch, wanted):
    with monkeypatch.context() as patch:
        ends(patch, "denoising", 3, KeyboardInterrupt())
        assert run(WORDS) == 130
    capsys.readouterr()
    assert run(WORDS) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "note: .a-red-circle.mp4.ea-run holds a saved run (step 3 of 4): --resume continues it, this" in told
    )
    assert content_hash(here / "a-red-circle.mp4") == wanted
    assert names(here) == ["a-red-circle.json", "a-red-circle.mp4"]


def test_the_run_of_a_default_name_is_found_again(here, monkeypatch, wanted):
    """Also where it was killed between the file and its sidecar."""
    from ea_runtime.generation import making

    with monkeypatch.context() as patch:
        patch.setattr(making, "write_sidecar", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert run(WORDS) == 130
    assert names(here) == [".a-red-circle.mp4.ea-run", "a-red-circle.mp4"]
    assert run([*WORDS, "--resume"]) == 0
    assert content_hash(here / "a-red-circle.mp4") == wanted
    assert names(here) == ["a-red-circle.json", "a-red-circle.mp4"]


def test_another_request_is_refused(here, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        ends(patch, "denoising", 3, KeyboardInterrupt())
        assert run([*WORDS, "-o", "out.mp4"]) == 130
    capsys.readouterr()
    assert run([*WORDS, "-o", "out.mp4", "--resume", "--seed", "9"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert (
        "is another one: settings.seed 43 -> 9; give its settings again, or start over without --resume"
        in told[0]
    )
    assert names(here) == [".out.mp4.ea-run"]


def test_nothing_saved_is_said(here, capsys, wanted):
    assert run([*WORDS, "-o", "out.mp4", "--resume"]) == 0
    assert "nothing is saved in .out.mp4.ea-run: this starts at the beginning" in capsys.readouterr().err
    assert content_hash(here / "out.mp4") == wanted


def test_several_prompts_keep_what_is_finished(here, capsys, monkeypatch):
    Path("prompts.txt").write_text("a red circle\na blue square\na green star\n")
    words = [WORDS[0], *WORDS[2:], "--prompts", "prompts.txt", "-o"]
    assert run([*words, "whole/"]) == 0
    with monkeypatch.context() as patch:
        ends(patch, "denoising", 2, KeyboardInterrupt(), prompt=2)
        assert run([*words, "clips/"]) == 130
    assert names(here / "clips") == [
        ".002-a-blue-square.mp4.ea-run",
        "001-a-red-circle.json",
        "001-a-red-circle.mp4",
    ]
    first = (here / "clips" / "001-a-red-circle.mp4").stat().st_mtime_ns
    capsys.readouterr()
    assert run([*words, "clips/", "--resume"]) == 0
    told = capsys.readouterr()
    assert told.out.split() == [f"clips/{name}" for name in names(here / "clips") if name.endswith(".mp4")]
    assert "001-a-red-circle.mp4 is complete already" in " ".join(told.err.split())
    assert names(here / "clips") == names(here / "whole")
    for path in (here / "whole").glob("*.mp4"):
        assert content_hash(here / "clips" / path.name) == content_hash(path)
    assert (here / "clips" / "001-a-red-circle.mp4").stat().st_mtime_ns == first
    assert run([*words, "clips/", "--resume"]) == 0
    assert capsys.readouterr().err.count("is complete already") == 3


@pytest.mark.parametrize("foreign", ["another file", "other settings", "changed"])
def test_a_file_that_is_not_this_run_s_is_not_replaced(here, capsys, foreign):
    if foreign == "another file":
        Path("out.mp4").write_bytes(b"mine")
    else:
        more = ["--seed", "1"] if foreign == "other settings" else []
        assert run([*WORDS, "-o", "out.mp4", *more]) == 0
    if foreign == "changed":
        with Path("out.mp4").open("ab") as file:
            file.write(b"more")
    before = Path("out.mp4").read_bytes()
    capsys.readouterr()
    assert run([*WORDS, "-o", "out.mp4", "--resume"]) == 2
    assert "'out.mp4' exists already; give another name or --overwrite" in capsys.readouterr().err
    assert Path("out.mp4").read_bytes() == before


def test_several_processes_are_refused(here, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run([*WORDS, "--resume"]) == 2
    assert (
        "`--resume` continues a run of one process, and 2 were started; start one" in capsys.readouterr().err
    )


def test_a_damaged_state_starts_over(here, capsys, monkeypatch, wanted):
    with monkeypatch.context() as patch:
        ends(patch, "denoising", 3, KeyboardInterrupt())
        assert run([*WORDS, "-o", "out.mp4"]) == 130
    (tensors,) = state_folder(Path("out.mp4")).glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1])
    capsys.readouterr()
    assert run([*WORDS, "-o", "out.mp4", "--resume"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("is damaged") == 1
    assert "is not what was written; the run starts over" in told
    assert content_hash(here / "out.mp4") == wanted
    assert names(here) == ["out.json", "out.mp4"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_9_of_the_command(here):
    """The whole program, as a user starts it; of the bundled model, whose steps are long enough to be met."""
    assert run([*TINY, "-o", "whole/out.mp4"]) == 0
    code = (
        "import sys; from functools import partial; from ea_runtime.generation import run_state; "
        "run_state.RunState = partial(run_state.RunState, first_after=0, every=0); "
        "from ea_runtime.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    state = here / ".out.mp4.ea-run" / "state.json"
    child = subprocess.Popen([sys.executable, "-c", code, *TINY, "-o", "out.mp4"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not state.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert state.exists()
    assert not Path("out.mp4").exists()
    done = subprocess.run(
        [sys.executable, "-c", code, *TINY, "-o", "out.mp4", "--resume"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "continues the saved run" in done.stderr
    assert content_hash(here / "out.mp4") == content_hash(here / "whole" / "out.mp4")
    assert names(here) == ["out.json", "out.mp4", "whole"]
