"""Import paths on the bare machine: this repository's packages, and what was carried along.

FOLDER/site.tar.xz     packages, unpacked into a temporary folder
FOLDER/reference/      golden data
"""

from __future__ import annotations

import sys
import tarfile
import tomllib
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = "site.tar.xz"


def paths(carried: Path | None, work: Path) -> list[str]:
    """Paths that must be on sys.path, in front. work: a folder to unpack into."""
    found = [str(ROOT / "tools"), str(ROOT / "benchmarks")]
    if carried is not None:
        archive = carried / ARCHIVE
        if not archive.is_file():
            raise SystemExit(f"`--carried` {carried} has no {ARCHIVE}; make it with `--pack {carried}`")
        with tarfile.open(archive) as packed:
            packed.extractall(work / "site", filter="data")
        found.append(str(work / "site"))
    if find_spec("ea_runtime") is None:
        for file in sorted(ROOT.glob("packages/*/pyproject.toml")):
            _describe(file, work / "site")
            found.append(str(file.parent / "src"))
        found.append(str(work / "site"))
    return list(dict.fromkeys(found))


def _describe(file: Path, site: Path) -> None:
    """The metadata of an installed package, by which versions and plugins are found."""
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    folder = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}"]
    (folder / "METADATA").write_text("\n".join([*lines, ""]), encoding="utf-8")
    entries = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in of_group.items())
        for group, of_group in project.get("entry-points", {}).items()
    )
    (folder / "entry_points.txt").write_text(entries, encoding="utf-8")


def find_reference(given: Path | None, carried: Path | None) -> Path | None:
    """The folder of golden data: the one given, a carried one, or shared/reference in or next to this repository."""
    places = [given, None if carried is None else carried / "reference"]
    places += [ROOT / "shared" / "reference", ROOT.parent / "shared" / "reference"]
    return next((place for place in places if place is not None and place.is_dir()), None)


def require(names: tuple[str, ...]) -> None:
    """Raises SystemExit with one line if a package cannot be imported from sys.path."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"{sys.executable} lacks {', '.join(missing)}; carry them: `tools/gpu_check.py --pack FOLDER` on a machine "
            "with an index, then `--carried FOLDER` here"
        )
