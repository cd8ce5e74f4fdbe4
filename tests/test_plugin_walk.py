"""docs/plugins.md: its walk to a new filter works as written, as a package and as a single file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "plugins.md"
UV = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the commands are for sh"),
    pytest.mark.skipif(UV is None, reason="uv is not installed"),
]


def blocks(language: str) -> list[str]:
    """The fenced blocks of the walk in one language, in order."""
    section = re.search(r"^## A filter of your own$\n(.*?)(?=^## )", PAGE.read_text("utf-8"), re.M | re.S)
    assert section, "docs/plugins.md has no section `## A filter of your own`"
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", section[1], re.M | re.S)
    return [textwrap.dedent(body) for _, body in found]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A new environment, with its own `ea`, that also sees the packages of the tests' environment."""
    place = tmp_path / "environment"
    subprocess.run(
        [str(UV), "venv", "--quiet", "--python", sys.executable, str(place)], check=True, timeout=120
    )
    (own,) = place.glob("lib/python*/site-packages")
    for number, name in enumerate(sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})):
        # addsitedir, not the bare path, so that editable installs are found too
        (own / f"_shared{number}.pth").write_text(f"import site; site.addsitedir({name!r})\n")
    ea = place / "bin" / "ea"
    ea.write_text(
        f"#!{place}/bin/python\nimport os, sys\nfrom ea_runtime.cli.main import main\n"
        "os.cpu_count = lambda: 1  # a process for each core: two videos keep one busy\nsys.exit(main())\n"
    )
    ea.chmod(0o755)
    env = {key: value for key, value in os.environ.items() if not key.startswith("UV_")}
    path = os.pathsep.join([str(place / "bin"), str(Path(str(UV)).parent), env["PATH"]])
    offline = {"UV_OFFLINE": "1", "UV_NO_BUILD_ISOLATION": "1", "UV_PYTHON": str(place / "bin" / "python")}
    return env | offline | {"PATH": path, "VIRTUAL_ENV": str(place), "NO_COLOR": "1", "COLUMNS": "200"}


def run(script: str, folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        ["sh", "-e", "-c", script],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def verdicts(folder: Path) -> list[tuple[str, str]]:
    """(threshold, reason) from the new filter for each clip that reached it."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(folder / "records.parquet").to_pylist()
    decisions = [one for row in rows for one in row["decisions"] if one["filter"] == "my-filter"]
    return [(one["threshold"], one["reason"]) for one in decisions]


def test_the_walk_leads_to_a_filter_that_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    pytest.importorskip("rapidocr", reason="the extra `ocr` of ea-data is not installed")
    begin, install, single = blocks("sh")
    (code,) = blocks("python")
    (entry,) = blocks("toml")
    assert len([line for line in code.splitlines() if line.strip()]) <= 25

    run(begin, tmp_path, environment)
    (tmp_path / "my-filter/src/my_filter/plugin.py").write_text(code, encoding="utf-8")
    with (tmp_path / "my-filter/pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(f"\n{entry}")
    told = run(install, tmp_path, environment)
    assert re.search(r"my-filter +filters +my-filter", told)
    found = verdicts(tmp_path / "set")
    assert found
    assert {threshold for threshold, _ in found} == {">= 40"}, "the last line changed the limit"
    assert all(reason.startswith("colourfulness is ") for _, reason in found)

    run(single, tmp_path, environment)
    again = verdicts(tmp_path / "other-set")
    assert {threshold for threshold, _ in again} == {">= 50"}
    assert {reason for _, reason in again} == {reason for _, reason in found}
