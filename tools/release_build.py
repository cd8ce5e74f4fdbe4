"""Builds of all packages from two clean trees to the same bytes, and the list of what they depend on (SBOM)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lock import clean

#: what differs between the two builds, and must not show in their bytes
DIFFERENCES = (
    {"TZ": "UTC", "PYTHONHASHSEED": "1", "LC_ALL": "C", "umask": "022"},
    {"TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "2", "LC_ALL": "C.UTF-8", "umask": "077"},
)


def run(command: list[str], cwd: Path, env: dict[str, str] | None = None, umask: int = -1) -> str:
    """The output of a command; ends the program with its messages if it fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
        umask=umask,
    )
    if done.returncode:
        sys.exit(
            f"release.py: `{' '.join(command)}` failed with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def clean_tree(root: Path, target: Path, umask: str) -> None:
    """The files of the last commit, in a new folder; nothing that is not committed."""
    target.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=root, capture_output=True, check=True).stdout
    subprocess.run(
        ["tar", "x", "--no-same-permissions"], cwd=target, input=archive, check=True, umask=int(umask, 8)
    )


def commit_time(root: Path) -> str:
    """Seconds since 1970 of the last commit: the time that all archives state."""
    return run(["git", "log", "-1", "--format=%ct"], root).strip()


def build_twice(root: Path, work: Path) -> Path:
    """The folder with wheels and sdists of all packages, each built twice to the same bytes.

    Each build has its own clean tree, and a time zone, hash seed, locale and umask that the other one has not. Wheels
    are built from the sdists, so these are complete.
    """
    folders = []
    for number, different in enumerate(DIFFERENCES, 1):
        tree, out = work / f"tree{number}", work / f"dist{number}"
        umask = different["umask"]
        clean_tree(root, tree, umask)
        env = {key: value for key, value in different.items() if key != "umask"}
        env["SOURCE_DATE_EPOCH"] = commit_time(root)
        run(["uv", "build", "--quiet", "--all-packages", "--out-dir", str(out)], tree, env, int(umask, 8))
        (out / ".gitignore").unlink(missing_ok=True)
        folders.append(out)
        shutil.rmtree(tree)
    faults = differences(*folders)
    if faults:
        sys.exit("release.py: two builds of one commit differ:\n" + "\n".join(faults))
    return folders[0]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def differences(one: Path, other: Path) -> list[str]:
    """One line per file that two folders do not share, byte for byte; an empty folder is a fault as well."""
    first, second = digests(one), digests(other)
    if not first:
        return ["nothing was built"]
    return [
        f"{name}: {first.get(name, 'missing')[:12]} and {second.get(name, 'missing')[:12]}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def sbom(root: Path, work: Path) -> dict[str, Any]:
    """Packages that ours and their extras may install, with versions, as CycloneDX 1.5, without addresses.

    uv makes it of the committed lock, which has no address. Its serial number and time follow from the contents and
    the commit, so that one commit has one SBOM.
    """
    tree = work / "tree-sbom"
    clean_tree(root, tree, "022")
    # a clone without the filter may have committed addresses
    lock = tree / "uv.lock"
    lock.write_text(clean(lock.read_text(encoding="utf-8")), encoding="utf-8")
    export = ["uv", "export", "--quiet", "--frozen", "--format", "cyclonedx1.5", "--all-packages"]
    made = json.loads(run([*export, "--all-extras", "--no-dev"], tree))
    shutil.rmtree(tree)
    made["metadata"]["timestamp"] = datetime.fromtimestamp(int(commit_time(root)), UTC).isoformat()
    del made["serialNumber"]
    made["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(made, sort_keys=True))}"
    return made


def sbom_problems(made: dict[str, Any], packages: list[str], lock: dict[str, Any]) -> list[str]:
    """One line per address in an SBOM, per package that it lacks, and per version that is not the lock's."""
    found = []
    text = json.dumps(made)
    if "://" in text:
        at = text.index("://")
        found.append(f"the SBOM holds an address: {text[max(0, at - 10) : at + 40]}")
    components = {one["name"]: one.get("version") for one in made.get("components", ())}
    found += [f"the SBOM lacks {name}" for name in packages if name not in components]
    pinned: dict[str, set[str]] = {}
    for one in lock["package"]:
        pinned.setdefault(one["name"], set()).add(one.get("version"))
    found += [
        f"{name} {version} of the SBOM is not in uv.lock"
        for name, version in components.items()
        if version not in pinned.get(name, set())
    ]
    return found
