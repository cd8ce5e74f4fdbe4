"""LPIPS against an independent computation, with weights made here in the right names and shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ea_runtime.errors import UserError
from ea_runtime.models.convert import convert_file
from ea_vae.training.lpips import LPIPS
from ea_vae.training.lpips_weights import load_lpips

#: torchvision's numbering of VGG16's convolutions, and those whose outputs LPIPS compares
CONVS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128)}
CONVS |= {10: (128, 256), 12: (256, 256), 14: (256, 256)}
CONVS |= {17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}
LOOKS = (2, 7, 14, 21, 28)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}
    for index, (before, after) in CONVS.items():
        made[f"features.{index}.weight"] = torch.randn(after, before, 3, 3, generator=generator) / (
            3 * before**0.5
        )
        made[f"features.{index}.bias"] = 0.1 * torch.randn(after, generator=generator)
    for i, index in enumerate(LOOKS):
        made[f"lin{i}.model.1.weight"] = torch.rand(1, CONVS[index][1], 1, 1, generator=generator)
    return made


@pytest.fixture
def folder(weights: dict[str, Tensor], tmp_path: Path) -> Path:
    """A folder like two converted downloads: a picture classifier, and the heads."""
    vgg = {name: t for name, t in weights.items() if name.startswith("features")}
    save_file(vgg | {"classifier.0.bias": torch.zeros(3)}, tmp_path / "vgg16.safetensors")
    save_file({n: t for n, t in weights.items() if n.startswith("lin")}, tmp_path / "vgg.safetensors")
    return tmp_path


def distance(weights: dict[str, Tensor], one: Tensor, other: Tensor) -> Tensor:
    """The distance by the paper's formula, one picture and one layer at a time, in float64 with plain loops."""
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.double).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.double).view(3, 1, 1)
    results = []
    for a, b in zip(one.double(), other.double(), strict=True):
        total = torch.zeros((), dtype=torch.double)
        x, y = (a - shift) / scale, (b - shift) / scale
        last = -2
        for index in CONVS:
            if index - last == 3:  # a pooling layer in between
                x, y = (F.max_pool2d(z[None], 2, 2)[0] for z in (x, y))
            w, bias = weights[f"features.{index}.weight"].double(), weights[f"features.{index}.bias"].double()
            x, y = (torch.clamp(F.conv2d(z[None], w, bias, padding=1)[0], min=0) for z in (x, y))
            last = index
            if index in LOOKS:
                head = weights[f"lin{LOOKS.index(index)}.model.1.weight"].double().flatten()
                units = [z / (torch.sqrt((z * z).sum(0, keepdim=True)) + 1e-10) for z in (x, y)]
                squared = (units[0] - units[1]) ** 2
                total = total + torch.einsum("c,chw->hw", head, squared).mean()
        results.append(total)
    return torch.stack(results)


def test_it_agrees_with_the_formula(
    weights: dict[str, Tensor], folder: Path, noise: Callable[..., Tensor]
) -> None:
    module = load_lpips(folder)
    one, other = noise(2, 3, 32, 24).clamp(-1, 1), noise(2, 3, 32, 24, seed=1).clamp(-1, 1)
    found = module(one, other)
    assert found.shape == (2,)
    expected = distance(weights, one, other)
    assert torch.allclose(found.double(), expected, rtol=1e-4)
    assert float(found.min()) > 0
    assert torch.equal(module(one, one), torch.zeros(2))
    assert torch.allclose(module(other, one), found, rtol=1e-5)


def test_gradients_reach_the_picture_and_no_weight(folder: Path, noise: Callable[..., Tensor]) -> None:
    module = load_lpips(folder)
    assert not module.train().training
    picture = noise(1, 3, 16, 16).requires_grad_()
    module(picture, torch.zeros(1, 3, 16, 16)).sum().backward()
    assert picture.grad is not None
    assert torch.isfinite(picture.grad).all()
    assert float(picture.grad.abs().sum()) > 0
    assert all(not p.requires_grad and p.grad is None for p in module.parameters())
    # a flat picture may switch every unit off: no NaN there either
    picture = torch.zeros(1, 3, 16, 16, requires_grad=True)
    with torch.no_grad():
        module.features["28"].bias.fill_(-1e6)
    module(picture, torch.ones(1, 3, 16, 16)).sum().backward()
    assert picture.grad is not None
    assert torch.isfinite(picture.grad).all()


def test_too_small_pictures() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=r"at least 16 pixels .* got 8 x 32"):
        LPIPS()(torch.zeros(1, 3, 8, 32), torch.zeros(1, 3, 8, 32))


def test_one_file_does_as_well(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({name: tensor.half() for name, tensor in weights.items()}, tmp_path / "all.safetensors")
    module = load_lpips(tmp_path / "all.safetensors")
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_converted_downloads_load(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """The two pickles that people download, converted with `ea models convert` into one folder."""
    of_vgg = {name: tensor for name, tensor in weights.items() if name.startswith("features")}
    torch.save(of_vgg, tmp_path / "vgg16-397923af.pth")
    torch.save({name: weights[name] for name in weights if name.startswith("lin")}, tmp_path / "vgg.pth")
    for name in ("vgg16-397923af.pth", "vgg.pth"):
        convert_file(tmp_path / name)
    module = load_lpips(tmp_path)
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("absent", "must be a .safetensors file or a folder of some"),
        ("empty", "must be a .safetensors file or a folder of some"),
        ("pickle", "is a pickle, which can run code and is not loaded; run `ea models convert"),
        ("pickles", "is a pickle, which can run code and is not loaded; run `ea models convert"),
        ("heads", "lacks 5 of LPIPS's 31 tensors, first lin0.model.1.weight"),
        ("shape", "features.0.bias must have shape (64,), got (63,)"),
        ("nan", "features.2.bias must hold finite numbers"),
        ("whole", "features.2.bias must hold finite numbers"),
        ("cut", "is damaged: it has"),
    ],
)
def test_what_is_refused(change: str, expected: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    target = tmp_path / "w.safetensors"
    changed = dict(weights)
    if change == "heads":
        changed = {n: t for n, t in weights.items() if n.startswith("features")}
    elif change == "shape":
        changed["features.0.bias"] = torch.zeros(63)
    elif change == "nan":
        changed["features.2.bias"] = torch.full((64,), torch.nan)
    elif change == "whole":
        changed["features.2.bias"] = torch.zeros(64, dtype=torch.int64)
    if change in ("heads", "shape", "nan", "whole", "cut"):
        save_file(changed, target)
    if change == "cut":
        target.write_bytes(target.read_bytes()[:-100])
    if change == "empty":
        target = tmp_path
    if change in ("pickle", "pickles"):
        torch.save(weights["lin0.model.1.weight"], tmp_path / "vgg16.pth")
        target = tmp_path / "vgg16.pth" if change == "pickle" else tmp_path
    with pytest.raises(UserError) as caught:
        load_lpips(target)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
