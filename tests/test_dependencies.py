"""Each package declares exactly what it imports: the shared environment would hide a missing dependency."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
#: dependencies declared without an import of ours, with the reason
NEEDED_BY_OTHERS = {
    "accelerate": "diffusers' from_pretrained takes less memory with it",
    "onnxruntime": "rapidocr runs its detector with it",
    "onnxruntime-gpu": "the build of it that also knows GPUs",
    "protobuf": "transformers reads spiece.model with it",
    "tensorrt": "imported by name, ea_runtime/export/tensorrt_api.py",
    "tensorrt-rtx": "imported by name, ea_runtime/export/tensorrt_api.py",
    "python-multipart": "starlette reads forms with it",
    "ray": "imported by name, ea_data/run/ray_engine.py and ea_runtime/serve/ray_workers/",
    "torchvision": "imported by name, ea_data/score/raft.py",
    "sentencepiece": "transformers reads spiece.model with it",
}
_DISTRIBUTIONS = packages_distributions()


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: Iterable[str]) -> set[str]:
    return {canonical(re.match(r"[\w.-]+", one)[0]) for one in requirements}


def imports(node: ast.AST) -> Iterator[str]:
    """Top-level names imported at run time, inside functions too, but not for type checking alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from imports(other)
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and not child.level:
            yield (child.module or "").partition(".")[0]
        yield from imports(child)


def distributions(files: Iterable[Path]) -> set[str]:
    """Distributions that these files import, without the standard library."""
    modules = {name for path in files for name in imports(ast.parse(path.read_text(encoding="utf-8")))}
    found = set()
    for module in modules - set(sys.stdlib_module_names):
        ours = module.replace("_", "-") if module.startswith("ea_") else None
        # an optional module that is not installed is declared under its own name
        found.add(canonical(ours or (_DISTRIBUTIONS.get(module) or [module])[0]))
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_declares_what_it_imports(package: str) -> None:
    folder = ROOT / "packages" / package
    metadata = project(folder)["project"]
    always = names(metadata["dependencies"])
    extras = {name for group in metadata.get("optional-dependencies", {}).values() for name in names(group)}
    used = distributions(folder.glob("src/**/*.py")) - {package}
    assert used - always - extras == set(), "imported and not declared"
    assert (always | extras) - used - NEEDED_BY_OTHERS.keys() == set(), "declared and not imported"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_depends_on_the_host_alone(package: str) -> None:
    ours = names(project(ROOT / "packages" / package)["project"]["dependencies"]) & set(PACKAGES)
    assert ours == (set() if package == "ea-runtime" else {"ea-runtime"})


def test_tests_benchmarks_and_tools_import_what_the_workspace_declares() -> None:
    workspace = project(ROOT)
    declared = names(workspace["project"]["dependencies"]) | names(workspace["dependency-groups"]["dev"])
    for package in PACKAGES:
        table = project(ROOT / "packages" / package)["project"]
        declared |= names(table["dependencies"])
        # a test of an extra skips with a reason if it is not installed
        declared |= names(one for extra in table.get("optional-dependencies", {}).values() for one in extra)
    files = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("packages/*/tests/**/*.py")]
    assert distributions(files) - declared == set()
    # these import each other by bare name
    # modules of tools/ import each other
    tools = sorted(ROOT.glob("tools/*.py"))
    assert distributions(tools) - declared <= {canonical(path.stem) for path in tools}
    # so do these, and they borrow from tests
    lent = [*ROOT.glob("benchmarks/*"), *ROOT.glob("packages/*/tests/*_for_tests.py")]
    own = {canonical(path.stem) for path in lent}
    assert distributions(ROOT.glob("benchmarks/**/*.py")) - declared <= own


def test_a_missing_declaration_is_found_out(tmp_path: Path) -> None:
    file = tmp_path / "lazy.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy\ndef f():\n    import PIL\n"
    )
    assert distributions([file]) == {"pillow"}
