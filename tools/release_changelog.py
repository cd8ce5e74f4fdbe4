"""The form of a CHANGELOG: versions with dates, newest first, and in each the sections of Keep a Changelog.

# Changelog
## Unreleased
### Added
- One line or more per change.
## 0.2.0 - 2026-11-25
### Fixed
- ...
"""

from __future__ import annotations

import re
from datetime import date

from packaging.version import Version

SECTIONS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
_VERSION = re.compile(r"(\d+\.\d+\.\d+) - (\d{4}-\d{2}-\d{2})")


def problems(text: str, version: str) -> list[str]:
    """One line per place that is not in the form; `version` must be the newest released one, or newer.

    A version that is newer than every heading has not been written up: that is a problem, too.
    """
    found: list[str] = []
    lines = text.splitlines()
    if not lines or lines[0] != "# Changelog":
        found.append("line 1: must be `# Changelog`")
    released: list[tuple[Version, date]] = []
    sections: list[str] = []
    is_filled = True  # whether the latest section has an entry
    for number, line in enumerate(lines[1:], 2):
        at = f"line {number}"
        if line.startswith(("## ", "### ")) and not is_filled:
            found.append(f"{at}: the section before it is empty")
        if line.startswith("## "):
            head, sections, is_filled = line[3:], [], True
            matched = _VERSION.fullmatch(head)
            if matched:
                released.append((Version(matched[1]), date.fromisoformat(matched[2])))
                if len(released) > 1 and not (
                    released[-1][0] < released[-2][0] and released[-1][1] <= released[-2][1]
                ):
                    found.append(f"{at}: {matched[1]} is not older than the version above it")
            elif head != "Unreleased":
                found.append(f"{at}: `## Unreleased` or `## 1.2.3 - YYYY-MM-DD`, got `{line}`")
            elif released:
                found.append(f"{at}: Unreleased comes first")
        elif line.startswith("### "):
            if line[4:] not in SECTIONS:
                found.append(f"{at}: `{line}`; a section is one of {', '.join(SECTIONS)}")
            elif line[4:] in sections:
                found.append(f"{at}: a second `{line}` in one version")
            sections.append(line[4:])
            is_filled = False
        elif line.startswith("- "):
            is_filled = True
            if not sections:
                found.append(f"{at}: an entry outside a section, such as `### Added`")
        elif line and not line.startswith("  "):
            found.append(f"{at}: neither a heading nor an entry (`- ...`): `{line[:40]}`")
    if not is_filled:
        found.append(f"line {len(lines)}: the last section is empty")
    if not released or released[0][0] != Version(version):
        found.append(f"the newest version with a date must be {version}, as in pyproject.toml")
    return found


def released(text: str, version: str, day: str) -> str:
    """The text with what is unreleased under `version`, and an empty Unreleased above it."""
    if "## Unreleased\n" not in text:
        raise SystemExit("release.py: this CHANGELOG has no `## Unreleased`, so there is nothing to release")
    return text.replace("## Unreleased\n", f"## Unreleased\n\n## {version} - {day}\n", 1)
