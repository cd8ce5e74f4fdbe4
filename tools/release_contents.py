"""Checks of built wheels and sdists: their metadata, and the licence of each file in them that is not code."""

from __future__ import annotations

import re
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement

LICENCE = "Apache-2.0"
#: declared without a lower bound, each with its reason
UNBOUND: dict[str, str] = {}


@dataclass(frozen=True)
class Contents:
    """One wheel or sdist: its metadata, its files from the top on, and its entry points."""

    metadata: Message
    names: tuple[str, ...]
    entry_points: str = ""


def read_wheel(path: Path) -> Contents:
    """The contents of a wheel."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()

        def of(end: str) -> str:
            return "".join(
                archive.read(name).decode() for name in names if name.endswith(f".dist-info/{end}")
            )

        return Contents(message_from_string(of("METADATA")), tuple(names), of("entry_points.txt"))


def read_sdist(path: Path) -> Contents:
    """The contents of an sdist, names without its top folder."""
    with tarfile.open(path) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
        info = archive.extractfile(next(one for one in archive if one.name.endswith("/PKG-INFO")))
        assert info is not None
        return Contents(message_from_string(info.read().decode()), tuple(names))


def metadata_problems(one: Contents, project: dict[str, Any], versions: dict[str, str]) -> list[str]:
    """One line per fault of a wheel's or sdist's metadata.

    `project` is the `[project]` table that it was built from; `versions` has all packages of this repository.
    """
    found: list[str] = []
    metadata = one.metadata

    def check(name: str, wanted: str | None) -> None:
        if metadata[name] != wanted:
            found.append(f"{name} must be {wanted!r}, got {metadata[name]!r}")

    check("Name", project["name"])
    check("Version", project["version"])
    check("Requires-Python", project["requires-python"])
    check("Summary", project["description"])
    check("License-Expression", LICENCE)
    check("License-File", "LICENSE")
    check("Description-Content-Type", "text/markdown")
    try:
        canonicalize_license_expression(metadata["License-Expression"] or "")
    except InvalidLicenseExpression as error:
        found.append(f"License-Expression: {error}")
    if len(str(metadata.get_payload()).strip()) < 200:
        found.append("the description (README.md) is missing or nearly empty")
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist") or ()]
    if len(requirements) != len(project["dependencies"]) + sum(
        len(extra) for extra in project.get("optional-dependencies", {}).values()
    ):
        found.append("Requires-Dist does not have what pyproject.toml declares")
    for need in requirements:
        found += _bound_problems(need, versions)
    return found


def _bound_problems(need: Requirement, versions: dict[str, str]) -> list[str]:
    operators = {one.operator for one in need.specifier}
    if need.name in versions:
        if not operators & {">=", "=="} or not operators & {"<", "=="}:
            return [f"`{need}` needs a lower and an upper bound: {need.name} is a package of this repository"]
        if not need.specifier.contains(versions[need.name]):
            return [f"`{need}` excludes {versions[need.name]}, the version in this repository"]
    elif not operators & {">=", "==", "~="} and need.name not in UNBOUND:
        return [f"`{need}` has no lower bound"]
    return []


def wheel_problems(one: Contents, project: dict[str, Any]) -> list[str]:
    """One line per file or entry point that a wheel lacks, or has and should not."""
    found: list[str] = []
    module = project["name"].replace("-", "_")
    info = f"{module}-{project['version']}.dist-info"
    for wanted in (f"{module}/__init__.py", f"{module}/py.typed", f"{info}/licenses/LICENSE"):
        if wanted not in one.names:
            found.append(f"{wanted} is missing")
    found += [
        f"{name} does not belong into a wheel"
        for name in one.names
        if name.split("/")[0] not in (module, info) or re.search(r"(^|/)(test_|tests/|__pycache__)", name)
    ]
    groups = {
        "console_scripts": project.get("scripts", {}),
        **project.get("entry-points", {}),
    }
    for group, entries in groups.items():
        for name, target in entries.items():
            if f"[{group}]" not in one.entry_points or f"{name} = {target}" not in one.entry_points:
                found.append(f"the entry point {name} = {target} of {group} is missing")
    return found


def bundled(root: Path) -> list[dict[str, Any]]:
    """The rows of tools/bundled.toml."""
    return tomllib.loads((root / "tools" / "bundled.toml").read_text(encoding="utf-8"))["files"]


def licence_problems(names: list[str], rows: list[dict[str, Any]]) -> list[str]:
    """One line per file in the wheels without exactly one row, and per row that is incomplete or names no file."""
    found: list[str] = []
    patterns = []
    for number, row in enumerate(rows, 1):
        for key in ("contents", "origin", "licence"):
            if not row.get(key):
                found.append(f"tools/bundled.toml: row {number} has no `{key}`")
        try:
            canonicalize_license_expression(row.get("licence", ""))
        except InvalidLicenseExpression as error:
            found.append(f"tools/bundled.toml: row {number}: {error}")
        patterns += [(pattern, _expression(pattern)) for pattern in row["paths"]]
    files = [name for name in names if not name.endswith((".py", ".pyi", "/")) and ".dist-info/" not in name]
    for name in files:
        matched = [pattern for pattern, expression in patterns if expression.fullmatch(name)]
        if len(matched) != 1:
            rows_of = ", ".join(matched) or "no row"
            found.append(f"{name} is in a wheel and has {rows_of} in tools/bundled.toml; it needs one")
    found += [
        f"tools/bundled.toml: `{pattern}` names no file of the wheels"
        for pattern, expression in patterns
        if not any(expression.fullmatch(name) for name in files)
    ]
    return found


def _expression(pattern: str) -> re.Pattern[str]:
    parts = []
    for part in pattern.split("/"):
        if part == "**":
            parts.append("(?:[^/]+/)*")
        else:
            parts.append(re.escape(part).replace(r"\*", "[^/]*") + "/")
    return re.compile("".join(parts).removesuffix("/"))


def sources(root: Path) -> list[str]:
    """Names that wheels of this tree have, without a build: what git tracks or would, under src of each package."""
    found = []
    for source in sorted(root.glob("packages/*/src")):
        found += [
            path.relative_to(source).as_posix()
            for path in sorted(source.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        ]
    return found


def projects(root: Path) -> dict[str, dict[str, Any]]:
    """The `[project]` table of each package, by name."""
    found = {}
    for path in sorted(root.glob("packages/*/pyproject.toml")):
        table = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        found[table["name"]] = table
    return found
