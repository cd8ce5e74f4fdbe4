"""uv.lock holds versions and no addresses, whatever a user's uv writes into it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "lock.py"
FULL = """\
version = 1
revision = 3

[[package]]
name = "demo"
version = "0.1.0"
source = { virtual = "." }
dependencies = [
    { name = "wheeled" },
]

[package.metadata]
requires-dist = [{ name = "wheeled", specifier = ">=1" }]

[package.metadata.requires-dev]
dev = [{ name = "wheeled" }]

[[package]]
name = "wheeled"
version = "1.2.3"
source = { registry = "https://mirror.example/simple" }
sdist = { url = "https://mirror.example/wheeled-1.2.3.tar.gz", hash = "sha256:00", size = 1 }
wheels = [
    { url = "https://mirror.example/wheeled-1.2.3-cp311.whl", hash = "sha256:01", size = 2 },
    { url = "https://mirror.example/wheeled-1.2.3-cp312.whl", hash = "sha256:02", size = 2 },
]

[package.optional-dependencies]
fast = [
    { name = "other", source = { registry = "https://mirror.example/simple" } },
]

[[package]]
name = "other"
version = "4"
source = { registry = "https://mirror.example/simple" }
wheels = [{ url = "https://mirror.example/other-4.whl", hash = "sha256:03", size = 2 }]
"""


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock_tool", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(text: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for package in tomllib.loads(text)["package"]:
        found.setdefault(package["name"], set()).add(package["version"])
    return found


def test_cleaning_drops_addresses_and_keeps_every_pin(lock: ModuleType) -> None:
    cleaned = lock.clean(FULL)
    assert "://" not in cleaned
    assert "hash" not in cleaned
    assert "metadata" not in cleaned
    assert pins(cleaned) == pins(FULL)
    other = tomllib.loads(cleaned)["package"][1]["optional-dependencies"]["fast"][0]
    assert other == {"name": "other", "source": {"registry": "pypi"}}


def test_cleaning_twice_is_cleaning_once(lock: ModuleType) -> None:
    once = lock.clean(FULL)
    assert lock.clean(once) == once


def test_line_ends_and_a_missing_one_make_no_difference(lock: ModuleType) -> None:
    assert lock.clean(FULL.replace("\n", "\r\n")) == lock.clean(FULL.rstrip("\n")) == lock.clean(FULL)


def test_the_lock_of_this_project_holds_no_address_and_every_package(lock: ModuleType) -> None:
    cleaned = lock.clean((ROOT / "uv.lock").read_text(encoding="utf-8"))
    assert not re.search(r"[a-z]+://|\bhttps?:|\.whl\b|sha256", cleaned)
    assert lock.clean(cleaned) == cleaned
    locked = pins(cleaned)
    for path in ROOT.glob("packages/*/pyproject.toml"):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        assert locked[project["name"]] == {project["version"]}
    assert {"torch", "diffusers", "transformers", "pytest", "pyright"} <= locked.keys()


def test_no_other_file_holds_an_address_of_a_registry() -> None:
    files = [ROOT / "pyproject.toml", *ROOT.glob("packages/*/pyproject.toml"), *ROOT.glob("docs/**/*.md")]
    files += [*ROOT.glob("*.md"), *ROOT.glob("packages/*/*.md"), *ROOT.glob("tools/*"), *ROOT.glob(".ci/*")]
    hosts = re.compile(r"(pypi\.org|pythonhosted|download\.pytorch|index-url|/simple\b)")
    found = [path.name for path in files if path.is_file() and hosts.search(path.read_text(encoding="utf-8"))]
    assert not found


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_clone_with_the_filter_commits_no_address(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "filter.uvlock.clean", f'"{sys.executable}" "{TOOL}" --clean')
    (tmp_path / ".gitattributes").write_text((ROOT / ".gitattributes").read_text(encoding="utf-8"))
    (tmp_path / "uv.lock").write_text(FULL, encoding="utf-8")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "lock")
    assert "://" not in git(tmp_path, "show", "HEAD:uv.lock")
    assert "://" in (tmp_path / "uv.lock").read_text(encoding="utf-8")
    # the addresses that uv wrote back do not count as a change
    assert git(tmp_path, "status", "--porcelain") == ""


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_what_is_committed_holds_no_address() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(
        ["git", "-C", str(ROOT), "show", "HEAD:uv.lock"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        pytest.skip(f"git shows no commit here: {done.stderr.strip()}")
    assert "://" not in done.stdout
