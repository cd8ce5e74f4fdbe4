"""README.md and CHANGELOG.md of each package: the example runs, the tree names every folder, the version is listed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
packages = pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)


def blocks(package: Path, language: str = "") -> list[str]:
    text = (package / "README.md").read_text(encoding="utf-8")
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for label, body in fences if label == language]


def unnamed(package: Path, tree: str) -> set[str]:
    """Code folders of the package that its tree does not name."""
    source = next((package / "src").iterdir())
    folders = {f"{path.parent.relative_to(source).as_posix()}/" for path in source.rglob("*.py")} - {"./"}
    return folders - set(re.findall(r"^ +([\w/]+/)", tree, re.MULTILINE))


@packages
def test_the_example_runs(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks(package, "python")
    monkeypatch.chdir(tmp_path)
    if "style.safetensors" in example:
        write_style(tmp_path / "style.safetensors")
    exec(compile(example, f"{package.name}/README.md", "exec"), {"__name__": "example"})


def write_style(path: Path) -> None:
    """A LoRA of one layer for `tiny`."""
    import torch

    from ea_lora import find_targets, write_lora
    from ea_lora.layer import Layer
    from ea_runtime import VideoPipeline

    denoiser = VideoPipeline.from_pretrained("tiny", parts=["denoiser"]).denoiser
    name, module = next((n, m) for n, m in find_targets(denoiser).items() if hasattr(m, "in_features"))
    down, up = torch.randn(2, module.in_features), torch.randn(module.out_features, 2) / 100
    write_lora(path, [Layer(name="", part="denoiser", path=name, down=down, up=up)])


@packages
def test_the_tree_names_every_folder(package: Path) -> None:
    (tree,) = blocks(package)
    assert not unnamed(package, tree)
    source = next((package / "src").iterdir())
    for name in re.findall(r"(?<![\w/.])[\w/]+(?:\.py\b|/)", tree.partition("\n")[2]):
        assert name.startswith("docs/") or (source / name).exists(), (
            f"{name} is in the tree and not in the package"
        )


def test_a_folder_missing_from_the_tree_is_caught() -> None:
    package = ROOT / "packages" / "ea-vae"
    (tree,) = blocks(package)
    assert unnamed(package, tree.replace("network/", "networks/")) == {"network/"}


@packages
def test_the_changelog_begins_with_the_version(package: Path) -> None:
    version = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    heads = re.findall(r"^## (\S+)", (package / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads[heads[0] == "Unreleased"] == version  # unreleased changes may come first


def test_the_filter_in_the_data_readme_judges(tmp_path: Path) -> None:
    from ea_runtime.plugins.host import make_host

    (example,) = blocks(ROOT / "packages/ea-data", "py")
    file = tmp_path / "vivid.py"
    file.write_text(example)
    vivid = make_host([str(file)]).get("filters", "vivid").build(None)
    for value, is_kept in ((30.0, True), (10.0, False)):
        record = {"scores": {"technical": {"value": 0.5, "detail": {"colourfulness": value}}}}
        assert vivid(record).is_kept is is_kept
