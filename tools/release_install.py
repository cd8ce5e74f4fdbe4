"""Installs built wheels into fresh environments: with the newest dependencies, or with the oldest that are allowed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from release_build import run

PYTHONS = ("3.11", "3.12", "3.13")
RESOLUTIONS = ("highest", "lowest-direct")
#: extras whose lower bounds are tried; the others need a GPU, a cluster or torchvision
EXTRAS = ("serve", "onnx", "c2pa", "ocr", "shots")
#: left out: tests that are slow or need a GPU. Those of the clone itself, in tests/, need its sources
MARKS = "not slow and not gpu"
#: what the tests of packages use, as in the group `dev`; those of the page of `ea serve` and of Ray skip without theirs
TEST_TOOLS = (
    "pytest>=8.3",
    "pytest-xdist>=3.8",
    "hypothesis>=6.100",
    "openai>=2.27,<4",
    "packaging>=24",
    "schemathesis>=4",
)
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        # the workers on a cluster need the extra ray
        if not module.name.endswith("__main__") and module.name != "ea_runtime.serve.ray_workers":
            importlib.import_module(module.name)
"""


@dataclass
class Environment:
    """A fresh virtual environment with the wheels of all packages, and nothing of the working tree."""

    folder: Path
    python_version: str

    @property
    def python(self) -> Path:
        """Its interpreter."""
        scripts = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
        return self.folder / scripts

    def create(self) -> None:
        """Makes it empty, in place of an earlier one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        venv = ["uv", "venv", "--quiet", "--python", self.python_version, str(self.folder)]
        run(venv, self.folder.parent, {"UV_PYTHON_DOWNLOADS": "never"})

    def install(self, wheels: Path, names: list[str], requirements: list[str]) -> None:
        """Installs `names` from the folder `wheels` alone, then `requirements`, and checks that all fit.

        No index is asked for `names`: packages of the same names there cannot get in. Those of an earlier call are
        replaced.
        """
        pip = ["uv", "pip", "install", "--quiet", "--python", str(self.python)]
        own = ["--no-index", "--no-deps", "--no-cache", "--reinstall", "--find-links", str(wheels)]
        run([*pip, *own, *names], self.folder)
        run([*pip, *requirements], self.folder, {"UV_HTTP_TIMEOUT": "300"})
        run(["uv", "pip", "check", "--quiet", "--python", str(self.python)], self.folder)

    def versions(self, names: tuple[str, ...]) -> dict[str, str]:
        """Installed versions of some distributions."""
        rows = json.loads(
            run(
                ["uv", "pip", "list", "--quiet", "--format", "json", "--python", str(self.python)],
                self.folder,
            )
        )
        return {row["name"]: row["version"] for row in rows if row["name"] in names}

    def call(self, *words: str, cwd: Path | None = None) -> str:
        """The output of a program of this environment, one thread, away from the working tree."""
        drop = ("PYTHONPATH", "VIRTUAL_ENV", "EA_PLUGINS_BLOCK", "EA_NO_PLUGINS", "EA_MODELS_DIR")
        env = {key: value for key, value in os.environ.items() if key not in drop}
        env |= {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        done = subprocess.run(
            [str(self.python), *words],
            cwd=cwd or self.folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)[:200]}:\n{(done.stderr + done.stdout)[-20000:]}")
        return done.stdout

    def make_video(self) -> None:
        """Makes one video with the bundled model."""
        video = self.folder / "fresh.mp4"
        self.call(
            "-m",
            "ea_runtime.cli.main",
            "generate",
            "a red circle moves right",
            "--overwrite",
            "-o",
            str(video),
        )
        if not video.stat().st_size or not video.with_suffix(".json").stat().st_size:
            raise RuntimeError(f"{video} or its sidecar is empty")

    def test(self, tree: Path, package: str, jobs: int) -> tuple[bool, str]:
        """True if a package's tests in a tree passed on the installed packages, and pytest's last line.

        The tree has no sources of packages. jobs: processes. Failures are printed.
        """
        words = ["-m", "pytest", "-n", str(jobs if jobs > 1 else 0), "-m", MARKS, "-rfE", "--tb=short"]
        # pytest's own -q is in pyproject.toml; a second one would hide the last line
        words += ["--continue-on-collection-errors", "-p", "no:cacheprovider", f"packages/{package}/tests"]
        try:
            said = self.call(*words, cwd=tree)
        except RuntimeError as error:
            print(error, flush=True)
            return False, str(error).strip().splitlines()[-1]
        return True, said.strip().splitlines()[-1]


def requirements_of(tree: Path, resolution: str, python: str, extras: bool) -> list[str]:
    """Pinned third-party requirements of all packages in a tree: the oldest or the newest versions allowed."""
    # the oldest versions that have a wheel for this Python: older ones would be compiled, or fail to
    compiled = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--only-binary", ":all:"]
    compiled += ["--resolution", resolution, "--python-version", python]
    projects = sorted(tree.glob("packages/*/pyproject.toml"))
    compiled += [str(path) for path in projects]
    if extras:
        compiled += [word for name in EXTRAS for word in ("--extra", name)]
    lines = run(compiled, tree).splitlines()
    names = {path.parent.name for path in projects}
    return [
        line
        for line in lines
        if line and not line.startswith(("-e ", "#")) and line.split("==")[0].partition(" ")[0] not in names
    ]


def pythons() -> dict[str, str]:
    """Interpreters of this machine, by version: '3.12' -> its path; versions that are not installed are left out."""
    found = {}
    for version in PYTHONS:
        # pyenv's shims answer for the selected version alone, so uv misses the others
        installed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
        if installed:
            found[version] = str(installed[-1])
            continue
        done = subprocess.run(
            ["uv", "python", "find", "--quiet", "--no-project", version],
            env=os.environ | {"UV_PYTHON_DOWNLOADS": "never"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            found[version] = done.stdout.strip()
    return found


def try_out(
    environment: Environment, tree: Path, wheels: Path, names: list[str], which: tuple[str, str], jobs: int
) -> str:
    """Two cells of a table: main dependencies, and what happened. A failure is printed and reported as FAILED.

    jobs: processes of the tests; 0 for no tests.
    """
    python, resolution = which
    try:
        if not environment.python.exists():
            environment.create()
        needs = requirements_of(tree, resolution, python, extras=True)
        environment.install(wheels, names, [*needs, *TEST_TOOLS])
    except SystemExit as error:  # of a command that failed
        print(error)
        return "| FAILED: cannot be installed"
    found = environment.versions(("torch", "diffusers", "transformers", "numpy", "av", "onnxruntime-gpu"))
    cell = ", ".join(f"{name} {version}" for name, version in sorted(found.items()))
    try:
        environment.call("-c", IMPORT_ALL, *(name.replace("-", "_") for name in names))
        environment.make_video()
    except RuntimeError as error:
        print(error)
        return f"{cell} | FAILED: {str(error).splitlines()[0]}"
    outcomes = ["all modules import, one video"]
    for source in tree.glob("packages/*/src"):  # the wheels are tested, never the tree
        shutil.rmtree(source)
    for name in names if jobs else ():
        passed, line = environment.test(tree, name, jobs)
        outcomes.append(f"{name} {line}" if passed else f"{name} FAILED: {line}")
        print(outcomes[-1], flush=True)
    return f"{cell} | {'; '.join(outcomes)}"
