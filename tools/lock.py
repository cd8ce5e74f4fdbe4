"""Keeps uv.lock free of download addresses, so that each user's own index (a mirror included) fills them in.

    python3 tools/lock.py --clean    stdin -> stdout: the committed form (git's clean filter for uv.lock)
    python3 tools/lock.py --write    resolves with `uv lock`, then writes the committed form
    python3 tools/lock.py --check    fails unless the committed form is current and holds no address

The committed form pins every version and drops what belongs to one index: `sdist` and `wheels` entries, the
registry's address, and the `[package.metadata]` tables of workspace members. uv notices the missing tables,
resolves again with every pinned version unchanged, and continues.

Standard library only: git runs this before anything is installed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_REGISTRY = re.compile(r"registry = \"[^\"]*\"")


def clean(text: str) -> str:
    """The committed form of a lock file's text. Cleaning twice changes nothing."""
    kept: list[str] = []
    in_list = False
    in_metadata = False
    for line in text.splitlines():
        if in_list:
            in_list = line != "]"
            continue
        if line.startswith("["):
            in_metadata = line.startswith("[package.metadata")
        if in_metadata or line.startswith("sdist = "):
            continue
        if line.startswith("wheels = ["):
            in_list = not line.endswith("]")
            continue
        kept.append(_REGISTRY.sub('registry = "pypi"', line))
    # dropped tables leave runs of empty lines
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).rstrip("\n") + "\n"


def resolved() -> str:
    """The committed form of uv's resolution of the workspace's pyproject files and the present pins."""
    uv = shutil.which("uv")
    if uv is None:
        sys.exit("lock.py: uv is not installed; install it with `pip install uv`")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for path in [ROOT / "pyproject.toml", *ROOT.glob("packages/*/pyproject.toml")]:
            target = copy / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            (target.parent / "README.md").touch()
        if (ROOT / "uv.lock").exists():
            (copy / "uv.lock").write_text(
                clean((ROOT / "uv.lock").read_text(encoding="utf-8")), encoding="utf-8"
            )
        done = subprocess.run(
            [uv, "lock", "--project", folder], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"lock.py: uv lock failed:\n{done.stderr}")
        return clean((copy / "uv.lock").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--clean", action="store_true")
    group.add_argument("--write", action="store_true")
    group.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    lock = ROOT / "uv.lock"
    if arguments.clean:
        sys.stdout.write(clean(sys.stdin.read()))
    elif arguments.write:
        lock.write_text(resolved(), encoding="utf-8")
    else:
        committed = clean(lock.read_text(encoding="utf-8"))
        if _ADDRESS.search(committed):
            sys.exit(
                "lock.py: the committed form of uv.lock holds an address; run `python3 tools/lock.py --write`"
            )
        if committed != resolved():
            sys.exit("lock.py: uv.lock is not current; run `python3 tools/lock.py --write` and commit it")


if __name__ == "__main__":
    main()
