"""Checks a release before anyone installs it.

    python tools/release.py --check          everything below, from the last commit: about five minutes
    python tools/release.py --quick          the checks that build nothing: seconds
    python tools/release.py --resolutions    all tests with the oldest and the newest dependencies, Python 3.11 to 3.13
    python tools/release.py --date ea-vae    puts what is unreleased in its CHANGELOG under its version and today's date

`--check` builds wheels and sdists of all packages twice to the same bytes, checks their metadata, READMEs and the
licence of each file that is not code, writes an SBOM, installs the wheels into a fresh environment and makes a video.
docs/release.md says what to do when. Wheels, sdists and the SBOM are left in `--out` (dist).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import release_build as building
import release_changelog as changelog
import release_contents as contents
import release_install as installing

ROOT = Path(__file__).resolve().parent.parent
BEGAN = time.monotonic()
#: programs that only a release needs, each run in an environment that uv makes for it
TWINE = ("--with", "twine==7.0.0", "--with", "readme-renderer[md]==46.0")
CYCLONEDX = ("--with", "cyclonedx-python-lib[json-validation]==11.12.0")
CFF = ("--with", "cffconvert==2.0.0", "--with", "setuptools<81")
_VALIDATE = """
import sys
from pathlib import Path
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(Path(sys.argv[1]).read_text(encoding="utf-8"))
sys.exit(str(error) if error else 0)
"""


def say(text: str) -> None:
    """Prints a line with the time since the start."""
    print(f"{time.monotonic() - BEGAN:6.0f} s  {text}", flush=True)


def refuse(what: str, found: list[str]) -> None:
    """Ends the program if there are faults, one line each."""
    if found:
        sys.exit(f"release.py: {what}:\n" + "\n".join(f"  {line}" for line in found))


def tool(packages: tuple[str, ...], *words: str) -> str:
    """The output of a program that is installed for this call alone."""
    return building.run(["uv", "run", "--quiet", "--no-project", "--python", "3.11", *packages, *words], ROOT)


def quick() -> None:
    """Checks changelogs and the list of bundled files in the working tree."""
    projects = contents.projects(ROOT)
    for name, project in projects.items():
        text = (ROOT / "packages" / name / "CHANGELOG.md").read_text(encoding="utf-8")
        refuse(f"packages/{name}/CHANGELOG.md", changelog.problems(text, project["version"]))
        licence = ROOT / "packages" / name / "LICENSE"
        if not licence.is_file() or licence.read_bytes() != (ROOT / "LICENSE").read_bytes():
            refuse(f"packages/{name}", ["LICENSE must be the file at the top of the repository"])
    refuse("licences", contents.licence_problems(contents.sources(ROOT), contents.bundled(ROOT)))
    say(f"changelogs and licences of bundled files: {len(projects)} packages")


def check(out: Path, work: Path) -> None:
    """Builds, checks and installs the last commit; leaves the files in `out`."""
    dirty = building.run(["git", "status", "--porcelain", "--", ".", ":!uv.lock"], ROOT)
    refuse("commit first; what is built is the last commit", dirty.splitlines())
    quick()
    tool(CFF, "cffconvert", "--validate", "-i", "CITATION.cff")
    say("CITATION.cff follows its schema")

    dist = building.build_twice(ROOT, work)
    files = sorted(dist.iterdir())
    say(f"{len(files)} wheels and sdists, built twice to the same bytes")
    inspect(files)
    say("metadata, entry points and licences")
    tool(TWINE, "twine", "check", "--strict", *map(str, files))
    say("READMEs render")

    bom = dist / "ea.cdx.json"
    made = building.sbom(ROOT, work)
    bom.write_text(json.dumps(made, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    refuse("SBOM", building.sbom_problems(made, list(contents.projects(ROOT)), lock))
    tool(CYCLONEDX, "python", "-c", _VALIDATE, str(bom))
    say(f"SBOM: {len(made['components'])} components, no address, valid CycloneDX 1.5")

    tree = work / "tree"
    building.clean_tree(ROOT, tree, "022")
    environment = installing.Environment(work / "env", "3.11")
    environment.create()
    names = list(contents.projects(ROOT))
    needs = installing.requirements_of(tree, "highest", "3.11", extras=False)
    environment.install(dist, names, needs)
    say("installed from the folder of wheels into a fresh environment")
    environment.make_video()
    say("one video made")

    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(dist, out)
    for name, digest in building.digests(out).items():
        print(f"{digest}  {name}")


def inspect(files: list[Path]) -> None:
    """Checks what is in wheels and sdists; ends the program at the first file with faults."""
    projects = contents.projects(ROOT)
    versions = {name: project["version"] for name, project in projects.items()}
    bundled: list[str] = []
    seen: set[tuple[str, str]] = set()
    for path in files:
        project = next(
            one for name, one in projects.items() if path.name.startswith(f"{name.replace('-', '_')}-")
        )
        is_wheel = path.suffix == ".whl"
        one = contents.read_wheel(path) if is_wheel else contents.read_sdist(path)
        refuse(path.name, contents.metadata_problems(one, project, versions))
        if is_wheel:
            refuse(path.name, contents.wheel_problems(one, project))
            bundled += one.names
        seen.add((project["name"], path.suffix))
    refuse("nothing was built of", [name for name in projects if not {(name, ".whl"), (name, ".gz")} <= seen])
    refuse("licences", contents.licence_problems(bundled, contents.bundled(ROOT)))


def resolutions(work: Path, wanted: list[str], jobs: int, keep: bool) -> None:
    """Runs imports, a video and tests with the oldest and the newest dependencies; ends with 1 if any fails.

    `wanted` names pairs such as "3.11:lowest-direct". One environment exists at a time, as each has several gigabytes,
    unless `keep` leaves them in `work` for the next call. jobs: processes of the tests; 0 for no tests.
    """
    tree, wheels = work / "tree", work / "wheels"
    for folder in (tree, wheels):
        shutil.rmtree(folder, ignore_errors=True)
    building.clean_tree(ROOT, tree, "022")
    building.run(["uv", "build", "--quiet", "--wheel", "--all-packages", "--out-dir", str(wheels)], tree)
    golden = ROOT.parent / "shared"  # tests look for what it has next to their tree
    if golden.is_dir() and not (work / "shared").exists():
        (work / "shared").symlink_to(golden)
    names = list(contents.projects(ROOT))
    interpreters = installing.pythons()
    rows: list[str] = []
    for pair in wanted:
        python, _, resolution = pair.partition(":")
        if python not in interpreters:
            rows.append(f"| {python} | {resolution} | not tried: no Python {python} on this machine | |")
            continue
        environment = installing.Environment(work / f"{python}-{resolution}", interpreters[python])
        say(f"Python {python}, {resolution}")
        outcome = installing.try_out(environment, tree, wheels, names, (python, resolution), jobs)
        rows.append(f"| {python} | {resolution} | {outcome} |")
        say(outcome)
        if not keep:
            shutil.rmtree(environment.folder, ignore_errors=True)
    print("| Python | versions | main dependencies | outcome |\n|---|---|---|---|\n" + "\n".join(rows))
    if any("FAILED" in row for row in rows):
        sys.exit(1)


def write_date(package: str) -> None:
    """Moves the unreleased lines of a package's CHANGELOG under its version, with today's date."""
    path = ROOT / "packages" / package / "CHANGELOG.md"
    projects = contents.projects(ROOT)
    if package not in projects:
        sys.exit(f"release.py: `--date` needs a package, got {package!r}; one of {', '.join(projects)}")
    version = projects[package]["version"]
    text = changelog.released(path.read_text(encoding="utf-8"), version, datetime.now(UTC).date().isoformat())
    refuse(f"packages/{package}/CHANGELOG.md would be wrong", changelog.problems(text, version))
    path.write_text(text, encoding="utf-8")


def in_folder(work: Path | None, job: Callable[[Path], None]) -> None:
    """Runs `job` in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="ea-release-", dir=work) as folder:
        job(Path(folder))


def main() -> None:
    pairs = [
        f"{python}:{resolution}" for python in installing.PYTHONS for resolution in installing.RESOLUTIONS
    ]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--check", action="store_true")
    group.add_argument("--quick", action="store_true")
    group.add_argument(
        "--resolutions", nargs="*", metavar="PYTHON:VERSIONS", help=f"all, or some of {' '.join(pairs)}"
    )
    group.add_argument("--date", metavar="PACKAGE")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "dist", help="of --check: replaced by the built files"
    )
    parser.add_argument(
        "--no-tests", action="store_true", help="of --resolutions: imports and one video only"
    )
    parser.add_argument("--jobs", type=int, default=1, help="of --resolutions: processes of the tests")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="of --resolutions: leave the environments in --work, and use those that are there",
    )
    parser.add_argument("--work", type=Path, help="where temporary folders are made; several gigabytes")
    arguments = parser.parse_args()
    if arguments.check:
        in_folder(arguments.work, lambda work: check(arguments.out, work))
    elif arguments.quick:
        quick()
    elif arguments.date:
        write_date(arguments.date)
    else:
        wanted = arguments.resolutions or pairs
        refuse("`--resolutions` takes " + " ".join(pairs), [pair for pair in wanted if pair not in pairs])
        refuse("`--jobs` must be 1 or more, got", [str(arguments.jobs)] if arguments.jobs < 1 else [])
        if arguments.keep and arguments.work is None:
            sys.exit("release.py: `--keep` leaves environments in `--work`; name that folder, too")
        jobs = 0 if arguments.no_tests else arguments.jobs
        if arguments.keep:
            arguments.work.mkdir(parents=True, exist_ok=True)
            resolutions(arguments.work.resolve(), wanted, jobs, keep=True)
        else:
            in_folder(arguments.work, lambda work: resolutions(work, wanted, jobs, keep=False))


if __name__ == "__main__":
    main()
