"""The packages form a star, each has layers and no circles, and networks know nothing of the host."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = ROOT / "pyproject.toml"
CONTRACTS = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
PACKAGES = ("ea_runtime", "ea_vae", "ea_dit", "ea_data", "ea_lora")
NETWORKS = ("ea_vae/network", "ea_dit/network", "ea_dit/weights")
MAY_IMPORT = {"torch", "einops", "diffusers", "safetensors"}


def source(package: str) -> Path:
    return ROOT / "packages" / package.replace("_", "-") / "src" / package


def imported(code: str) -> Iterator[str]:
    """Top-level names that a file imports, inside functions and for type checking too."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def foreign(code: str, package: str) -> set[str]:
    return set(imported(code)) - MAY_IMPORT - set(sys.stdlib_module_names) - {package}


def lint_imports(path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`lint-imports` with the contracts of pyproject.toml. path: a folder whose packages shadow the installed ones."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--config", str(PYPROJECT), "--no-cache"]
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(
        command, cwd=path or ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def circles(*packages: str) -> list[str]:
    """Modules that import one another, directly or not; a package's `__init__` counts as a module."""
    graph = grimp.build_graph(*packages, cache_dir=None)
    return [
        f"{one} -> {other}"
        for one in sorted(graph.modules)
        for other in sorted(graph.find_modules_directly_imported_by(one))
        if graph.chain_exists(importer=other, imported=one)
    ]


def test_the_contracts_hold() -> None:
    done = lint_imports()
    assert done.returncode == 0, done.stdout
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in done.stdout


def test_contracts_that_are_broken_are_found_out(tmp_path: Path) -> None:
    """Copies with an import that runs upwards, a circle within a folder, a network that asks the host, a stray file."""
    for package in ("ea_runtime", "ea_vae"):
        shutil.copytree(
            source(package), tmp_path / package, ignore=shutil.ignore_patterns("tiny", "__pycache__")
        )
    for file, line in (
        ("ea_runtime/files/safe.py", "from ea_runtime.generation import pipeline"),
        ("ea_runtime/samplers/schedule.py", "from ea_runtime.samplers import euler"),
        ("ea_vae/network/conv.py", "from ea_runtime import errors"),
    ):
        with (tmp_path / file).open("a", encoding="utf-8") as code:
            code.write(f"\n\ndef added():\n    {line}\n")
    (tmp_path / "ea_vae" / "stray.py").write_text("")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    broken = {line.removesuffix(" BROKEN") for line in done.stdout.splitlines() if line.endswith(" BROKEN")}
    assert broken == {
        "Layers of ea_runtime",
        "Layers of ea_vae",
        "Networks know nothing of the host",
        "No circles in ea_runtime",
    }
    for text in (
        "ea_runtime.files is not allowed to import ea_runtime.generation",
        "No cycles are allowed in ea_runtime.samplers.",
        "ea_vae.network.conv -> ea_runtime",
        "stray",
    ):
        assert text in done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_modules_import_one_another(package: str) -> None:
    assert circles(package) == []


def test_a_circle_through_a_packages_init_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not a circle among siblings, so no contract reports it."""
    package = tmp_path / "ea_twin"
    package.mkdir()
    (package / "__init__.py").write_text("from ea_twin.inner import name\n")
    (package / "inner.py").write_text("def f():\n    from ea_twin import name\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert circles("ea_twin") == ["ea_twin -> ea_twin.inner", "ea_twin.inner -> ea_twin"]


@pytest.mark.parametrize("folder", NETWORKS)
def test_a_network_imports_torch_einops_and_diffusers_only(folder: str) -> None:
    package = folder.partition("/")[0]
    for file in (source(package).parent / folder).rglob("*.py"):
        assert not foreign(file.read_text(encoding="utf-8"), package), file.name


@pytest.mark.parametrize(
    "line", ["import ea_runtime.errors", "def f():\n    from ea_dit.network.model import X", "import numpy"]
)
def test_a_network_that_imports_more_is_found_out(line: str) -> None:
    assert foreign(f"import math\nimport torch.nn\n{line}\n", "ea_vae")


def test_the_bare_packages_import_nothing_heavy() -> None:
    code = (
        "import sys, ea_runtime, ea_vae, ea_dit, ea_data, ea_lora\n"
        "print(*sorted({'torch', 'numpy', 'diffusers', 'transformers', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == ""
