"""Small networks, LoRA files written without this package's writer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ea_runtime.plugins.host import Host, set_host

RANK, ALPHA = 4, 2.0


class Block(nn.Module):
    """Two Linears, one of them without a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.net = nn.ModuleList([nn.Linear(width, 2 * width), nn.Linear(2 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net[1](torch.tanh(self.net[0](self.to_q(x))))


class SmallDenoiser(nn.Module):
    """A 3x3 and two 1x1 convolutions, then blocks: (B, 4, H, W) -> (B, 4, H, W)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, width, 3, padding=1)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.blocks = nn.ModuleList([Block(width) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, 1)
        self.proj_out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj_in(self.conv_in(x))
        height = x.shape[2]
        x = self.mix(x.flatten(2)).transpose(1, 2)  # (B, H * W, D)
        for block in self.blocks:
            x = block(x)
        x = self.proj_out(input=self.norm(x))  # by keyword, which torch allows
        return x.transpose(1, 2).unflatten(2, (height, -1))


class SmallText(nn.Module):
    """(B, L, 8) -> (B, L, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([Block(8)])

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder[0](x)


#: the layers of the small networks as V2 names them, with (inputs, outputs)
LAYERS: dict[str, tuple[int, int]] = {
    "lora_unet__proj_in": (8, 8),
    "lora_unet__mix": (8, 8),
    "lora_unet__proj_out": (8, 4),
    **{
        f"lora_unet__blocks_{number}_{name}": shape
        for number in (0, 1)
        for name, shape in (("to_q", (8, 8)), ("net_0", (8, 16)), ("net_1", (16, 8)))
    },
    "lora_te_encoder_0_to_q": (8, 8),
    "lora_te_encoder_0_net_0": (8, 16),
}
CONVOLUTIONS = {"lora_unet__proj_in": 2, "lora_unet__mix": 1}


def lora_tensors(
    seed: int = 0, rank: int = RANK, alpha: float = ALPHA, std: float = 0.3
) -> dict[str, Tensor]:
    """A LoRA for the small networks."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, (inputs, outputs) in LAYERS.items():
        tail = (1,) * CONVOLUTIONS.get(name, 0)
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, inputs, *tail, generator=generator) * std
        tensors[f"{name}.lora_up.weight"] = torch.randn(outputs, rank, *tail, generator=generator) * std
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def make_pipe(dtype: torch.dtype = torch.float32, *, text: bool = True) -> SimpleNamespace:
    """A pipeline for `load_lora`, with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        denoiser, encoder = SmallDenoiser().to(dtype).eval(), SmallText().to(dtype).eval()
    return SimpleNamespace(denoiser=denoiser, text=SimpleNamespace(model=encoder) if text else None)


def run(pipe: Any) -> tuple[Tensor, Tensor]:
    """Outputs of both networks for seeded inputs."""
    generator = torch.Generator().manual_seed(2)
    dtype = pipe.denoiser.proj_out.weight.dtype
    picture = torch.randn(2, 4, 5, 6, generator=generator).to(dtype)
    words = torch.randn(2, 3, 8, generator=generator).to(dtype)
    with torch.inference_mode():
        return pipe.denoiser(picture), pipe.text.model(words)


def state_hash(*modules: nn.Module | None) -> str:
    """Over every weight and buffer by name, and the names of hooks: what must be as before."""
    digest = hashlib.sha256()
    for module in modules:
        if module is None:
            continue
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device}".encode())
            digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
        for name, child in module.named_modules():
            hooks = (child._forward_hooks, child._forward_pre_hooks, child._forward_hooks_with_kwargs)
            digest.update(f"{name} {type(child).__name__} {[len(found) for found in hooks]}".encode())
    return digest.hexdigest()


def pipe_hash(pipe: Any) -> str:
    return state_hash(pipe.denoiser, None if pipe.text is None else pipe.text.model)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.fixture
def write_lora_file(tmp_path: Path) -> Callable[..., Path]:
    """Write tensors (by default a good LoRA for the small networks) as a safetensors file."""

    def write(tensors: dict[str, Tensor] | None = None, name: str = "style.safetensors", **how: Any) -> Path:
        path = tmp_path / name
        save_file(lora_tensors(**how) if tensors is None else tensors, path)
        return path

    return write


@pytest.fixture(scope="session")
def field_cases() -> Path:
    """The folder of files from public reports, `shared/cases` next to the checkout; the test is skipped without."""
    folder = Path(__file__).resolve().parents[4] / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip(f"cases from the field are not on this machine: {folder} is missing")
    return folder


@pytest.fixture(scope="session")
def golden_folder(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of the golden transformer and T5, with a tokenizer that only makes it complete."""
    import shutil

    from ea_runtime.text.encoder import train_tokenizer
    from ea_runtime.text.tokenizer import save_tokenizer

    folder = tmp_path_factory.mktemp("golden") / "model"
    shutil.copytree(reference / "dit_v2", folder / "transformer", copy_function=shutil.copyfile)
    shutil.copytree(
        reference / "lora" / "text_encoder", folder / "text_encoder", copy_function=shutil.copyfile
    )
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "transformer" / "golden.safetensors").unlink()
    save_tokenizer(train_tokenizer(["a red circle"], vocab_size=400), folder / "tokenizer")
    return folder


FAKE_DENOISER = Path(__file__).parent / "fake_denoiser.py"
#: the layers of fake_denoiser.py's model
MODEL_LAYERS = ("proj_in", "mix", "blocks_0_to_q", "blocks_1_to_q", "proj_out")


def model_tensors(**how: Any) -> dict[str, Tensor]:
    """A LoRA for the model of `model_folder`: part of the one for the small denoiser."""
    keys = tuple(f"lora_unet__{name}." for name in MODEL_LAYERS)
    return {key: value for key, value in lora_tensors(**how).items() if key.startswith(keys)}


@pytest.fixture
def model_folder(tmp_path: Path) -> Iterator[Path]:
    """A model folder with a small float32 denoiser and no other network; the host knows its class."""
    host = Host(files=[FAKE_DENOISER], entry_points=False)
    set_host(host)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = host.get("denoisers", "small").build()()
    folder = tmp_path / "model"
    model.save_pretrained(folder / "transformer")
    (folder / "README.md").write_text("a card\n")
    yield folder
    set_host(None)


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """The helpers above: test files cannot import each other with --import-mode=importlib."""
    values = {"layers": LAYERS, "rank": RANK, "alpha": ALPHA, "plugin": FAKE_DENOISER}
    helpers = (lora_tensors, make_pipe, run, state_hash, pipe_hash, relative_error, model_tensors)
    return SimpleNamespace(**{helper.__name__: helper for helper in helpers}, **values)
