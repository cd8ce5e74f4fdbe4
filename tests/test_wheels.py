"""Wheels of all packages: each with the host only, all together, and the denoiser without the VAE.

Every environment is new and holds only the wheels and their declared dependencies, linked from the tests' environment,
so this needs neither network nor space. .ci/run installs the same wheels with their dependencies for real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
SIBLINGS = [name for name in PACKAGES if name != "ea-runtime"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="links files"),
]

#: seven seconds for each package but the host; .ci/run always does it, in environments that are installed for real
IMPORTS_ALL = os.environ.get("EA_FULL") == "1"
#: imports every module of the packages named on the command line
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        # the server needs an extra
        if not module.name.endswith("__main__") and not module.name.startswith("ea_runtime.serve."):
            importlib.import_module(module.name)
"""


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each package, built from a copy of its folder."""
    folder = tmp_path_factory.mktemp("wheels")
    found = {}
    for package in PACKAGES:
        copy = folder / "source" / package
        ignore = shutil.ignore_patterns("__pycache__", "tests")
        shutil.copytree(ROOT / "packages" / package, copy, ignore=ignore)
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / package)]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        (found[package],) = (folder / package).glob("*.whl")
    return found


class Environment:
    """A virtual environment with some of the wheels installed."""

    def __init__(self, folder: Path, wheels: list[Path]) -> None:
        command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        self.folder = folder
        self.python = folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python*/site-packages")
        requirements = []
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(self.site)
                (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
                lines = archive.read(metadata).decode().splitlines()
            requirements += [
                line.split(":", 1)[1].strip() for line in lines if line.startswith("Requires-Dist:")
            ]
        for name in closure(requirements):
            self.link(name)

    def link(self, name: str) -> None:
        """Links the files of an installed distribution into this environment."""
        home = Path(str(distribution(name).locate_file("")))
        for top in {file.parts[0] for file in distribution(name).files or () if file.parts[0] != ".."}:
            target = self.site / top
            if (home / top).exists() and not target.exists() and top != "__pycache__":
                target.symlink_to(home / top)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        drop = ("PYTHONPATH", "VIRTUAL_ENV", "EA_PLUGINS_BLOCK", "EA_NO_PLUGINS", "EA_MODELS_DIR")
        env = {key: value for key, value in os.environ.items() if key not in drop} | {"NO_COLOR": "1"}
        command = [str(self.python), *words]
        return subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, check=False, timeout=600
        )

    def ea(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "ea_runtime.cli.main", *words)


def closure(requirements: list[str]) -> set[str]:
    """Third-party distributions that these requirements need, directly or not."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        one = waiting.pop()
        wanted = one.marker is None or any(
            one.marker.evaluate({"extra": extra}) for extra in one.extras | {""}
        )
        if not wanted or one.name in found or one.name in PACKAGES:
            continue
        try:
            needs = distribution(one.name).requires or ()
        except PackageNotFoundError:
            pytest.fail(f"{one} is declared and is not installed")
        assert one.specifier.contains(distribution(one.name).version, prereleases=True), f"{one} is not met"
        found.add(one.name)
        waiting += [Requirement(text) for text in needs if "extra ==" not in text and "extra==" not in text]
    return found


def packages_of(rows: list[dict[str, str]]) -> set[str]:
    return {row["package"] for row in rows}


def test_a_wheel_holds_the_code_the_types_and_nothing_of_the_tests(wheels: dict[str, Path]) -> None:
    for package, wheel in wheels.items():
        module = package.replace("-", "_")
        names = zipfile.ZipFile(wheel).namelist()
        assert {f"{module}/__init__.py", f"{module}/py.typed"} <= set(names)
        tops = {name.partition("/")[0] for name in names}
        assert tops == {module, f"{module}-{version(package)}.dist-info"}
        assert not [name for name in names if "test_" in name or name.endswith((".pyc", ".mp4"))]


def test_the_hosts_wheel_holds_the_bundled_model(wheels: dict[str, Path]) -> None:
    source = ROOT / "packages" / "ea-runtime" / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in (source / "ea_runtime" / "tiny").rglob("*")
        if path.is_file()
    }
    if not files:
        pytest.skip("no bundled model in this checkout")
    assert files <= set(zipfile.ZipFile(wheels["ea-runtime"]).namelist())


def test_the_hosts_wheel_holds_the_page_of_ea_serve(wheels: dict[str, Path]) -> None:
    source = ROOT / "packages" / "ea-runtime" / "src"
    files = {
        path.relative_to(source).as_posix() for path in (source / "ea_runtime" / "serve" / "page").iterdir()
    }
    assert "ea_runtime/serve/page/index.html" in files
    assert files <= set(zipfile.ZipFile(wheels["ea-runtime"]).namelist())


def test_the_host_alone(wheels: dict[str, Path], tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env", [wheels["ea-runtime"]])
    done = environment.run("-c", IMPORT_ALL, "ea_runtime")
    assert done.returncode == 0, done.stderr
    done = environment.ea("plugins", "--json")
    rows = json.loads(done.stdout)
    assert packages_of(rows) == {"ea-runtime"}
    assert {row["state"] for row in rows} == {"ok"}
    done = environment.ea("data")
    assert done.returncode == 2
    assert done.stderr == "error: the command 'data' comes with ea-data; run `pip install ea-data`\n"


@pytest.mark.parametrize("package", SIBLINGS)
def test_a_package_alone_with_the_host(wheels: dict[str, Path], tmp_path: Path, package: str) -> None:
    environment = Environment(tmp_path / "env", [wheels["ea-runtime"], wheels[package]])
    if IMPORTS_ALL:
        done = environment.run("-c", IMPORT_ALL, package.replace("-", "_"))
        assert done.returncode == 0, done.stderr
    rows = json.loads(environment.ea("plugins", "--json").stdout)
    assert packages_of(rows) == {"ea-runtime", package}
    assert {row["state"] for row in rows} == {"ok"}


def test_the_denoiser_without_the_vae_says_which_package_is_missing(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "env", [wheels["ea-runtime"], wheels["ea-dit"]])
    model = tmp_path / "model"
    for part, name in (("vae", "AutoencoderKLMagvit"), ("transformer", "Transformer3DModel")):
        (model / part).mkdir(parents=True)
        (model / part / "config.json").write_text(json.dumps({"_class_name": name}))
    done = environment.ea("generate", "a red circle", "--model", str(model), "-o", str(tmp_path / "out.mp4"))
    assert done.returncode == 2, done.stderr
    assert "pip install ea-vae" in done.stderr
    assert "Traceback" not in done.stderr

    # the denoiser itself works, up to the point where pixels are needed
    code = """
from ea_dit import Transformer3DModel
from ea_runtime import VideoPipeline
from ea_runtime.errors import MissingPackageError
from ea_runtime.testing import FakeTextEncoder
model = Transformer3DModel(
    num_attention_heads=2, attention_head_dim=32, cross_attention_dim=64, num_layers=2, caption_channels=8,
    sample_size=8,
)
pipe = VideoPipeline(denoiser=model, text=FakeTextEncoder(width=8))
request = dict(num_frames=1, height=64, width=64, num_inference_steps=2)
assert pipe("a red circle", output="latents", **request).latents.shape == (1, 4, 1, 8, 8)
try:
    pipe("a red circle", **request)
except MissingPackageError as error:
    assert "pip install ea-vae" in str(error), error
else:
    raise SystemExit("it decoded without a VAE")
"""
    done = environment.run("-c", code)
    assert done.returncode == 0, done.stderr


def test_all_together(wheels: dict[str, Path], tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env", list(wheels.values()))
    rows = json.loads(environment.ea("plugins", "--json").stdout)
    assert packages_of(rows) == set(PACKAGES)
    assert {row["state"] for row in rows} == {"ok"}
    done = environment.ea("--help")
    assert {"generate", "train", "data", "lora", "models", "plugins"} <= set(done.stdout.split())


def test_an_undeclared_dependency_is_found_out(wheels: dict[str, Path], tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env", [wheels["ea-runtime"]])
    (environment.site / "pluggy").unlink()
    done = environment.ea("--help")
    assert done.returncode != 0
    assert "No module named 'pluggy'" in done.stderr


def version(package: str) -> str:
    text = (ROOT / "packages" / package / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]["version"]
