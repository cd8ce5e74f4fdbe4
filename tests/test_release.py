"""tools/release.py: changelogs, metadata, licences of bundled files, the SBOM; each check also on something broken.

The builds themselves are too slow here: docs/release.md has the commands.
"""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from dataclasses import replace
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
building = importlib.import_module("release_build")
changelog = importlib.import_module("release_changelog")
contents = importlib.import_module("release_contents")
installing = importlib.import_module("release_install")
sys.path.remove(str(ROOT / "tools"))

PROJECTS = contents.projects(ROOT)
VERSIONS = {name: project["version"] for name, project in PROJECTS.items()}
GOOD = """\
# Changelog

## Unreleased

### Added

- Tiles.
  They are even.

## 0.2.0 - 2026-11-26

### Changed

- Seeds.
"""


@pytest.mark.parametrize("package", PROJECTS)
def test_changelogs_have_the_form(package: str) -> None:
    text = (ROOT / "packages" / package / "CHANGELOG.md").read_text(encoding="utf-8")
    assert changelog.problems(text, VERSIONS[package]) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("### Added\n\n", "", "line 5: an entry outside a section"),
        ("### Added", "### New", "line 5: `### New`; a section is one of"),
        (" - 2026-11-26", "", "line 10: .*got `## 0.2.0`"),
        ("- Seeds.\n", "", "the last section is empty"),
        ("- Tiles.\n  They are even.\n", "", "line 8: the section before it is empty"),
        ("- Seeds.\n", "- Seeds.\n\n## 0.3.0 - 2026-11-25\n\n### Added\n\n- X.\n", "0.3.0 is not older"),
        ("0.2.0", "0.1.0", "newest version with a date must be 0.2.0"),
        ("- Tiles", "* Tiles", "line 7: neither a heading nor an entry"),
        (
            "### Changed\n\n- Seeds.\n",
            "### Changed\n\n- Seeds.\n\n### Changed\n\n- More.\n",
            "a second `### Changed`",
        ),
    ],
)
def test_a_changelog_out_of_form_is_caught(old: str, new: str, fault: str) -> None:
    assert changelog.problems(GOOD, "0.2.0") == []
    assert old in GOOD
    faults = "\n".join(changelog.problems(GOOD.replace(old, new), "0.2.0"))
    assert re.search(fault, faults), faults


def test_a_release_moves_what_is_unreleased() -> None:
    text = changelog.released(GOOD, "0.3.0", "2026-12-01")
    assert changelog.problems(text, "0.3.0") == []
    assert text.index("## Unreleased") < text.index("## 0.3.0 - 2026-12-01") < text.index("- Tiles.")


def test_every_bundled_file_has_one_licence() -> None:
    assert contents.licence_problems(contents.sources(ROOT), contents.bundled(ROOT)) == []


def test_bundled_files_without_a_licence_are_caught() -> None:
    names, rows = contents.sources(ROOT), contents.bundled(ROOT)
    (fault,) = contents.licence_problems([*names, "ea_runtime/serve/page/fonts/Some.woff2"], rows)
    assert "Some.woff2 is in a wheel and has no row" in fault
    (fault,) = contents.licence_problems(names, [*rows, {**rows[0], "paths": ["ea_vae/lpips/*.safetensors"]}])
    assert "`ea_vae/lpips/*.safetensors` names no file" in fault
    faults = contents.licence_problems(names, [{**rows[0], "licence": "my own"}, *rows[1:]])
    assert any("Invalid" in fault or "my own" in fault for fault in faults)
    doubled = contents.licence_problems(names, [*rows, rows[1]])
    assert len(doubled) == 3
    assert all("it needs one" in fault for fault in doubled)


def built(project: dict[str, Any]) -> Any:
    """Contents as a build of a package has them."""
    needs = list(project["dependencies"])
    for extra, lines in project.get("optional-dependencies", {}).items():
        for line in lines:
            need, _, marker = (part.strip() for part in line.partition(";"))
            needs.append(
                f"{need}; ({marker}) and extra == '{extra}'" if marker else f"{need}; extra == '{extra}'"
            )
    head = {
        "Name": project["name"],
        "Version": project["version"],
        "Summary": project["description"],
        "Requires-Python": project["requires-python"],
        "License-Expression": project["license"],
        "License-File": project["license-files"][0],
        "Description-Content-Type": "text/markdown",
    }
    lines = [f"{key}: {value}" for key, value in head.items()] + [f"Requires-Dist: {need}" for need in needs]
    readme = (ROOT / "packages" / project["name"] / project["readme"]).read_text(encoding="utf-8")
    module = project["name"].replace("-", "_")
    info = f"{module}-{project['version']}.dist-info"
    groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    points = "\n".join(
        f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in rows.items()) for group, rows in groups.items()
    )
    names = (f"{module}/__init__.py", f"{module}/py.typed", f"{info}/licenses/LICENSE", f"{info}/METADATA")
    return contents.Contents(message_from_string("\n".join(lines) + "\n\n" + readme), names, points)


@pytest.mark.parametrize("package", PROJECTS)
def test_metadata_of_the_packages(package: str) -> None:
    project = PROJECTS[package]
    one = built(project)
    assert contents.metadata_problems(one, project, VERSIONS) == []
    assert contents.wheel_problems(one, project) == []
    assert (ROOT / "packages" / package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": "0.1.9"}, "Version must be"),
        ({"license": "MIT"}, "License-Expression must be 'Apache-2.0'"),
        ({"license-files": ["COPYING"]}, "License-File must be"),
        ({"requires-python": ">=3.8"}, "Requires-Python must be"),
        ({"dependencies": ["torch"]}, "`torch` has no lower bound"),
        ({"dependencies": ["ea-runtime>=0.2"]}, "needs a lower and an upper bound"),
        ({"dependencies": ["ea-runtime>=0.1,<0.2"]}, "excludes"),
        ({"dependencies": []}, "does not have what pyproject.toml declares"),
    ],
)
def test_wrong_metadata_is_caught(change: dict[str, Any], fault: str) -> None:
    project = PROJECTS["ea-vae"]
    found = contents.metadata_problems(built({**project, **change}), project, VERSIONS)
    assert any(fault in line for line in found), found


def test_a_wheel_that_lacks_files_or_has_too_many_is_caught() -> None:
    project = PROJECTS["ea-runtime"]
    one = built(project)
    lacking = replace(
        one, names=one.names[:1], entry_points=one.entry_points.replace("ea-runtime =", "ea_runtime =")
    )
    faults = contents.wheel_problems(lacking, project)
    assert [line for line in faults if "py.typed is missing" in line]
    assert [line for line in faults if "entry point ea-runtime" in line]
    (fault,) = contents.wheel_problems(replace(one, names=(*one.names, "tests/test_x.py")), project)
    assert "does not belong" in fault


def test_builds_that_differ_are_caught(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "a.whl").write_bytes(b"same")
    assert building.differences(one, other) == []
    (other / "a.whl").write_bytes(b"sane")
    (one / "b.whl").touch()
    assert [line.split(":")[0] for line in building.differences(one, other)] == ["a.whl", "b.whl"]
    (tmp_path / "empty").mkdir()
    assert building.differences(tmp_path / "empty", tmp_path / "empty") == ["nothing was built"]


def test_an_sbom_with_an_address_or_another_version_is_caught() -> None:
    lock = {"package": [{"name": "ea-vae", "version": "0.2.0"}, {"name": "torch", "version": "2.9.0"}]}
    rows = [{"name": "ea-vae", "version": "0.2.0"}, {"name": "torch", "version": "2.9.0"}]
    assert building.sbom_problems({"components": rows}, ["ea-vae"], lock) == []
    address = {
        "name": "torch",
        "version": "2.9.0",
        "externalReferences": [{"url": "https://mirror.example/x"}],
    }
    (fault,) = building.sbom_problems({"components": [rows[0], address]}, ["ea-vae"], lock)
    assert "mirror.example" in fault
    (fault,) = building.sbom_problems(
        {"components": [rows[0], {**rows[1], "version": "2.8"}]}, ["ea-vae"], lock
    )
    assert "torch 2.8" in fault
    (fault,) = building.sbom_problems({"components": rows[1:]}, ["ea-vae"], lock)
    assert fault == "the SBOM lacks ea-vae"


def test_the_citation_names_version_and_licence() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"version: {VERSIONS['ea-runtime']}" in citation
    assert f"license: {project['license']}" in citation


class _Installed(installing.Environment):
    """An environment without files: the tests of "two" fail."""

    def create(self) -> None: ...

    def install(self, wheels: Path, names: list[str], requirements: list[str]) -> None: ...

    def versions(self, names: tuple[str, ...]) -> dict[str, str]:
        return {"torch": "2.9.0"}

    def make_video(self) -> None: ...

    def call(self, *words: str, cwd: Path | None = None) -> str:
        if words[-1] == "packages/two/tests":
            raise RuntimeError("pytest:\nE   a bound too low\n1 failed, 2 passed in 3.00s")
        return "...\n3 passed in 1.00s\n"


def test_packages_after_one_that_fails_are_tested_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(installing, "requirements_of", lambda *given, **more: [])
    (tmp_path / "packages" / "one" / "src").mkdir(parents=True)
    environment = _Installed(tmp_path / "env", "3.11")
    names, pair = ["one", "two", "three"], ("3.11", "lowest-direct")
    row = installing.try_out(environment, tmp_path, tmp_path, names, pair, 1)
    assert row == (
        "torch 2.9.0 | all modules import, one video; one 3 passed in 1.00s; "
        "two FAILED: 1 failed, 2 passed in 3.00s; three 3 passed in 1.00s"
    )
    assert "a bound too low" in capsys.readouterr().out
    assert not (tmp_path / "packages" / "one" / "src").exists()
    assert installing.try_out(environment, tmp_path, tmp_path, names, pair, 0).endswith("one video")
