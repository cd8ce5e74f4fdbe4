"""The packages form a star, and model files know nothing of the host."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = ROOT / "pyproject.toml"
CONTRACTS = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
MODEL_FILES = next(c for c in CONTRACTS if c["name"].startswith("Model files"))["source_modules"]
#: what of ea_vae and ea_dit may import the host
HOST_FILES = {
    "ea_vae": {"plugin", "recipe", "recipe_options", "lpips_weights", "export"},
    "ea_dit": {"plugin", "recipe", "options", "start", "samples", "motion_files", "export"},
}
MAY_IMPORT = {"torch", "einops", "diffusers", "safetensors"}


def source(module: str) -> Path:
    package, _, rest = module.partition(".")
    return ROOT / "packages" / package.replace("_", "-") / "src" / package / f"{rest.replace('.', '/')}.py"


def imported(code: str) -> Iterator[str]:
    """Top-level names that a file imports, also inside functions and for type checking."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def foreign(code: str, package: str) -> set[str]:
    return set(imported(code)) - MAY_IMPORT - set(sys.stdlib_module_names) - {package}


def lint_imports(config: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--config", str(config), "--no-cache"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def test_the_contracts_hold() -> None:
    done = lint_imports(PYPROJECT)
    assert done.returncode == 0, done.stdout
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in done.stdout


def test_a_contract_that_is_broken_is_found_out(tmp_path: Path) -> None:
    config = tmp_path / "pyproject.toml"
    text = PYPROJECT.read_text(encoding="utf-8")
    config.write_text(text.replace('"ea_vae.config"', '"ea_vae.config", "ea_vae.recipe"'), encoding="utf-8")
    done = lint_imports(config)
    assert done.returncode == 1
    assert "ea_vae.recipe -> ea_runtime" in done.stdout


@pytest.mark.parametrize("package", ["ea_vae", "ea_dit"])
def test_every_file_of_a_network_is_under_the_contract(package: str) -> None:
    folder = source(f"{package}.x").parent
    files = {
        path.relative_to(folder).with_suffix("").as_posix().replace("/", ".") for path in folder.rglob("*.py")
    }
    listed = {module.partition(".")[2] for module in MODEL_FILES if module.startswith(f"{package}.")}
    assert files - HOST_FILES[package] - {"__init__"} == listed


@pytest.mark.parametrize("module", MODEL_FILES)
def test_a_model_file_imports_torch_einops_and_diffusers_only(module: str) -> None:
    code = source(module).read_text(encoding="utf-8")
    assert not foreign(code, module.partition(".")[0])


@pytest.mark.parametrize(
    "line", ["import ea_runtime.errors", "def f():\n    from ea_dit.model import X", "import numpy"]
)
def test_a_model_file_that_imports_more_is_found_out(line: str) -> None:
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
