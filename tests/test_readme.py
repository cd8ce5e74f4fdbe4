"""README.md: the commands under "Start" work as printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
INSTALL_UV = "pip install uv && "

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="the commands are for sh")]


def commands(text: str) -> list[str]:
    """The lines of the fenced `sh` blocks under the heading "Start", without comments."""
    section = re.search(r"^## Start$\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, "README.md has no section `## Start`"
    blocks = re.findall(r"^```sh\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    assert blocks, "the section `## Start` of README.md has no fenced `sh` block"
    lines = (line.partition("  #")[0].strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def start() -> list[str]:
    return commands(README.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git tracks or would track: the commands run and write there."""
    copy = tmp_path_factory.mktemp("readme") / "ea"
    at_top = {"runs", "data", "dist", "shared"}
    anywhere = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "*.mp4")
    shutil.copytree(
        ROOT,
        copy,
        ignore=lambda place, names: anywhere(place, names) | (at_top if Path(place) == ROOT else set()),
    )
    return copy


def run(line: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a line with `sh`, in the tests' own environment, which `uv run` finds ready."""
    if shutil.which("uv"):
        line = line.replace(INSTALL_UV, "")
    settings = {"UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_SYNC": "1", "UV_OFFLINE": "1", "NO_COLOR": "1"}
    env = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "UV_PROJECT")}
    env |= settings | more
    return subprocess.run(
        ["sh", "-c", line], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=900
    )


def test_there_are_two_commands_that_need_only_pip(start: list[str]) -> None:
    assert len(start) == 2
    assert all(line.startswith(INSTALL_UV + "uv run ") for line in start)
    assert " generate " in start[0]
    assert "pytest" in start[1]


def test_the_first_makes_a_video_and_its_sidecar(start: list[str], checkout: Path) -> None:
    if not (ROOT / "packages/ea-runtime/src/ea_runtime/tiny").is_dir():
        pytest.skip("no bundled model in this checkout")
    before = set(checkout.iterdir())
    done = run(start[0], checkout)
    assert done.returncode == 0, done.stderr
    made = {path.suffix: path for path in set(checkout.iterdir()) - before if path.is_file()}
    assert {".mp4", ".json"} <= made.keys()
    assert made[".mp4"].name in done.stdout
    json.loads(made[".json"].read_text(encoding="utf-8"))

    import av

    with av.open(str(made[".mp4"])) as video:
        assert sum(1 for _ in video.decode(video=0)) > 1


#: found, not imported, nor are conftests: that takes ten seconds of a core, and this test itself is one of them
FINDS = """
import os

def pytest_ignore_collect(collection_path):
    if collection_path.is_file() and collection_path.name.startswith("test_"):
        with open(os.environ["FOUND"], "a") as file:
            print(collection_path, file=file)
        return True
"""


def test_the_second_runs_every_test(start: list[str], checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "finds.py").write_text(FINDS)
    found = tmp_path / "found"
    settings = {
        "PYTEST_ADDOPTS": "--collect-only -n 0 --noconftest -p finds",
        "PYTHONPATH": str(tmp_path),
        "FOUND": str(found),
    }
    done = run(start[1], checkout, **settings)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout[-2000:] + done.stderr[-2000:]
    places = [*checkout.glob("packages/*/tests"), checkout / "tests", checkout / "examples"]
    wanted = {path.resolve() for place in places for path in place.rglob("test_*.py")}
    assert len(wanted) > 300
    assert {Path(line) for line in found.read_text().splitlines()} == wanted
    for conftest in checkout.rglob("conftest.py"):  # none leaves a file out
        assert "collect_ignore" not in conftest.read_text("utf-8")
        assert "pytest_ignore_collect" not in conftest.read_text("utf-8")


def test_a_readme_without_commands_is_caught() -> None:
    with pytest.raises(AssertionError, match="has no section"):
        commands("# ea\n\nNothing to start with.\n")
    with pytest.raises(AssertionError, match="no fenced `sh` block"):
        commands("# ea\n\n## Start\n\nSee the docs.\n\n## Tour\n\n```sh\nls\n```\n")
    assert commands("## Start\n\n```sh\n# a video\na b  # and why\n\nc\n```\n") == ["a b", "c"]
