"""Loading model folders: the result equals the usual way's, and every fault is one line."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.models.hash import model_hash
from ea_runtime.models.layout import GenerationDefaults, read_defaults, resolve_folder
from ea_runtime.models.loading import load_parts
from ea_runtime.plugins.host import Host

VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
DENOISER_FILE = "transformer/diffusion_pytorch_model.safetensors"


def error_of(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_parts(folder, **options)
    message = str(caught.value)
    assert message.isprintable(), "one line, no control characters"
    return message


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def usual_way(folder: Path, host: Host, dtype: torch.dtype) -> torch.nn.Module:
    cls = host.get("denoisers", "fake-denoiser").build()
    network = cls.from_config(json.loads((folder / "transformer/config.json").read_text()))
    state = load_file(folder / DENOISER_FILE)
    network.load_state_dict({**state, "last.weight": state["first.weight"]})
    return network.to(dtype).eval()


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mode", ["plain", "reads"])
def test_loaded_networks_compute_what_the_usual_way_does(
    model_folder: Path, use_fake_host: Host, dtype: torch.dtype | None, mode: str
) -> None:
    config = json.loads((model_folder / "transformer/config.json").read_text())
    write_json(model_folder / "transformer/config.json", {**config, "mode": mode})
    parts = load_parts(model_folder, dtype=dtype)
    expected = usual_way(model_folder, use_fake_host, dtype or torch.float32)
    ids = torch.arange(16)
    assert torch.equal(parts.denoiser(ids), expected(ids))
    assert parts.denoiser.last.weight is parts.denoiser.first.weight
    assert not parts.denoiser.training
    for (name, got), (_, want) in zip(parts.denoiser.named_buffers(), expected.named_buffers(), strict=True):
        assert torch.equal(got, want), name
    assert parts.text.encode(["a red circle"]).embeds.dtype == (dtype or torch.float32)
    assert parts.notes == ()


def test_loading_leaves_the_random_state_alone(model_folder: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    load_parts(model_folder, parts=("vae", "denoiser"))
    assert torch.equal(torch.get_rng_state(), state)


def test_some_parts_only(model_folder: Path) -> None:
    shutil.rmtree(model_folder / "text_encoder")
    parts = load_parts(model_folder, parts=["vae"])
    assert parts.vae is not None
    assert parts.denoiser is None
    assert parts.text is None
    assert "`parts` may hold vae, denoiser, text" in error_of(model_folder, parts=["vea"])


def test_meta_device_reads_no_tensor(model_folder: Path) -> None:
    parts = load_parts(model_folder, device="meta", dtype=torch.bfloat16, parts=["denoiser"])
    assert all(parameter.is_meta for parameter in parts.denoiser.parameters())
    assert all(parameter.dtype == torch.bfloat16 for parameter in parts.denoiser.parameters())


def test_published_class_names_and_stray_keys_are_no_obstacle(model_folder: Path) -> None:
    write_json(
        model_folder / "model_index.json",
        {"_class_name": "PixArtAlphaPipeline", "transformer": ["diffusers", "Transformer2DModel"]},
    )
    config = json.loads((model_folder / "vae/config.json").read_text())
    write_json(model_folder / "vae/config.json", {**config, "optimization_step": 2100, "decay": 0.9999})
    parts = load_parts(model_folder)
    assert type(parts.vae).__name__ == "FakeVae"
    assert parts.notes == (
        "vae/config.json: keys that its class does not know are ignored: decay, optimization_step",
    )


def shard(folder: Path, weight_map: dict[str, str] | None = None) -> dict[str, str]:
    """Splits the denoiser's file in two; `weight_map` replaces the index's."""
    tensors = load_file(folder / DENOISER_FILE)
    (folder / DENOISER_FILE).unlink()
    names = sorted(tensors)
    found = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / "transformer" / file)
        found |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map if weight_map is not None else found}
    write_json(folder / "transformer/diffusion_pytorch_model.safetensors.index.json", index)
    return found


def test_shards_equal_one_file(model_folder: Path) -> None:
    whole = load_parts(model_folder, parts=["denoiser"]).denoiser.state_dict()
    shard(model_folder)
    split = load_parts(model_folder, parts=["denoiser"]).denoiser.state_dict()
    assert all(torch.equal(whole[name], split[name]) for name in whole)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("/etc/passwd", "next to it"),
        ("../vae/diffusion_pytorch_model.safetensors", "next to it"),
        ("..", "next to it"),
        ("sub\\file.safetensors", "next to it"),
        (7, "next to it"),
        ("weights.bin", "ea models convert"),
        ("absent.safetensors", "missing"),
        ("diffusion_pytorch_model-00001-of-00002.safetensors", "do not hold"),
    ],
)
def test_an_index_that_names_other_files_is_refused(model_folder: Path, file: str, reason: str) -> None:
    found = shard(model_folder)
    (model_folder / "transformer/diffusion_pytorch_model.safetensors.index.json").unlink()
    index = {"weight_map": {**found, sorted(found)[1]: file}}
    write_json(model_folder / "transformer/diffusion_pytorch_model.safetensors.index.json", index)
    assert reason in error_of(model_folder)


def test_links_may_not_leave_the_folder(model_folder: Path, tmp_path: Path) -> None:
    shutil.move(model_folder / VAE_FILE, tmp_path / "elsewhere.safetensors")
    (model_folder / VAE_FILE).symlink_to(tmp_path / "elsewhere.safetensors")
    assert "link that leaves the folder" in error_of(model_folder)


def test_links_of_a_download_cache_are_followed(model_folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b/snapshots/abc"
    blobs = tmp_path / "models--a--b/blobs"
    blobs.mkdir(parents=True)
    snapshot.parent.mkdir()
    shutil.copytree(model_folder, snapshot)
    shutil.move(snapshot / VAE_FILE, blobs / "hash")
    (snapshot / VAE_FILE).symlink_to("../../../blobs/hash")
    assert load_parts(snapshot).vae is not None


@pytest.mark.parametrize("part", ["vae", "transformer", "text_encoder"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "diffusion_pytorch_model.pt", "x.ckpt", "x.pth"])
def test_pickles_are_refused_and_the_command_is_named(model_folder: Path, part: str, name: str) -> None:
    for file in (model_folder / part).glob("*.safetensors"):
        file.rename(file.with_name(name))
    assert f"`ea models convert {model_folder}`" in error_of(model_folder)


def test_a_folder_without_weights_names_the_files(model_folder: Path) -> None:
    (model_folder / VAE_FILE).unlink()
    assert "expected vae/diffusion_pytorch_model.safetensors" in error_of(model_folder)
    shutil.rmtree(model_folder / "vae")
    assert "expected vae/config.json and vae/diffusion_pytorch_model.safetensors" in error_of(model_folder)
    (model_folder / "tokenizer/tokenizer.json").unlink()
    assert "tokenizer/spiece.model" in error_of(model_folder, parts=["text"])


def test_missing_wrong_and_unexpected_tensors(model_folder: Path) -> None:
    tensors = load_file(model_folder / DENOISER_FILE)
    save_file({**tensors, "ema.step": torch.zeros(1)}, model_folder / DENOISER_FILE)
    assert (
        "1 tensors that its class does not know are ignored (ema.step)" in load_parts(model_folder).notes[0]
    )
    broken = {name: tensor for name, tensor in tensors.items() if "layers.1" not in name}
    broken["table"] = torch.zeros(3, 8)
    save_file({**broken, "other": torch.zeros(1)}, model_folder / DENOISER_FILE)
    message = error_of(model_folder)
    assert "2 tensors are missing (layers.1.bias, layers.1.weight)" in message
    assert "1 have another shape (table must be [2, 8], is [3, 8])" in message
    assert "1 are not part of this model (other)" in message


def test_damaged_files(model_folder: Path) -> None:
    data = (model_folder / VAE_FILE).read_bytes()
    for damaged in (
        b"",
        data[:7],
        data[:50],
        data[:-1],
        data + b"x",
        b"\xff" * 200,
        struct.pack("<Q", 2) + b"[]",
    ):
        (model_folder / VAE_FILE).write_bytes(damaged)
        assert "damaged" in error_of(model_folder)
    (model_folder / VAE_FILE).write_bytes(data)
    for text in (
        "",
        "{",
        "[1]",
        '"x"',
        "{" * 100_000,
        '{"_class_name": "\ud800"}'.encode("utf-8", "surrogatepass"),
    ):
        (model_folder / "vae/config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        assert "vae/config.json" in error_of(model_folder)
    (model_folder / "vae/config.json").write_text(" " * (1 << 20) + "{}")
    assert "more than the 1,048,576" in error_of(model_folder)


def test_a_file_cut_after_its_header_was_read(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ea_runtime.models import loading as module

    plan = module.plan_part(model_folder, module.PARTS["vae"])
    os.truncate(model_folder / VAE_FILE, (model_folder / VAE_FILE).stat().st_size - 4)
    with pytest.raises(UserError, match="ends early"):
        module.load_part(plan)


def test_no_such_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError,
        match=r"no model is called .tinyy.; there are: tiny; or give a model folder; did you mean .tiny",
    ):
        resolve_folder("tinyy")
    with pytest.raises(UserError, match="there is no model folder"):
        resolve_folder("./tinyy")
    with pytest.raises(UserError, match="must be a bundled name"):
        resolve_folder("")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="must be a folder, got the file"):
        resolve_folder("file")
    (tmp_path / "models/mine/vae").mkdir(parents=True)
    write_json(tmp_path / "models/mine/vae/config.json", {})
    monkeypatch.setenv("EA_MODELS_DIR", str(tmp_path / "models"))
    assert resolve_folder("mine") == tmp_path / "models/mine"
    with pytest.raises(UserError, match="there are: tiny, mine"):
        resolve_folder("other")


def test_a_class_that_no_package_brings(model_folder: Path) -> None:
    for name, package in (("AutoencoderKLMagvit", "ea-vae"), ("AutoencoderKL", "ea-vae")):
        write_json(model_folder / "vae/config.json", {"_class_name": name})
        with pytest.raises(
            MissingPackageError, match=f"a {name}, which comes with {package}; run `pip install {package}`"
        ):
            load_parts(model_folder)
    write_json(model_folder / "transformer/config.json", {"_class_name": "Transformer3DModel"})
    with pytest.raises(MissingPackageError, match="pip install ea-dit"):
        load_parts(model_folder, parts=["denoiser"])
    write_json(model_folder / "vae/config.json", {"_class_name": "FakeVea"})
    assert "there are: FakeVae; did you mean 'FakeVae'?" in error_of(model_folder)
    write_json(model_folder / "vae/config.json", {"width": 8})
    assert "must name its class as `_class_name`, got None" in error_of(model_folder)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"width": "8"}, "does not fit FakeDenoiser"),
        ({"mode": "fast"}, "`mode` must be plain or reads"),
        ({"num_layers": 10**9}, "`num_layers` must be at most 512"),
        ({"num_layers": 500}, "does not fit weights of 7 tensors"),
        ({"sample_size": 4096, "num_attention_heads": 1000, "attention_head_dim": 72}, "can be built"),
        ({"auto_map": {"AutoModel": "x--y.Z"}}, "makes a library load code"),
        ({"nested": {"_attn_implementation": "some/kernel"}}, "makes a library load code"),
    ],
)
def test_configs_that_cannot_be_built(model_folder: Path, config: dict[str, object], reason: str) -> None:
    write_json(model_folder / "transformer/config.json", {"_class_name": "FakeDenoiser", **config})
    assert reason in error_of(model_folder)


def test_defaults(model_folder: Path) -> None:
    schedule, defaults = read_defaults(model_folder)
    assert defaults == GenerationDefaults(
        height=384, width=672, num_frames=144, fps=24, steps=50, guidance=6.0, sampler="dpm++", seed=43
    )
    assert (schedule["beta_start"], schedule["beta_end"], schedule["num_train_timesteps"]) == (
        1e-4,
        0.02,
        1000,
    )
    write_json(
        model_folder / "ea.json", {"height": 64, "width": 64, "num_frames": 18, "fps": 12, "name": "mine"}
    )
    (model_folder / "scheduler").mkdir()
    (model_folder / "scheduler/scheduler_config.json").write_text(
        '{"_class_name": "DPMSolverMultistepScheduler", "beta_end": 0.01, "lambda_min_clipped": -Infinity}'
    )
    parts = load_parts(model_folder, parts=[])
    assert (parts.defaults.height, parts.defaults.num_frames, parts.defaults.steps) == (64, 18, 50)
    assert parts.scheduler_config["beta_end"] == 0.01
    assert "lambda_min_clipped" not in parts.scheduler_config


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("ea.json", '{"steps": 0}', "steps"),
        ("ea.json", '{"guidance": NaN}', "guidance"),
        ("ea.json", '{"sampler": "$(touch x)"}', "sampler"),
        ("ea.json", '{"height": "64"}', "height"),
        ("scheduler/scheduler_config.json", '{"beta_start": NaN}', "`beta_start`: "),
        ("scheduler/scheduler_config.json", '{"beta_end": 1e-9}', "`beta_end`"),
        ("scheduler/scheduler_config.json", '{"num_train_timesteps": 1000000000}', "`num_train_timesteps`"),
        ("scheduler/scheduler_config.json", '{"beta_schedule": "sigmoid"}', "`beta_schedule`: "),
        (
            "scheduler/scheduler_config.json",
            '{"trained_betas": [0.1]}',
            "`trained_betas`: must be a list of 1000",
        ),
        ("scheduler/scheduler_config.json", '{"prediction_type": "flow"}', "`prediction_type`"),
        ("scheduler/scheduler_config.json", '{"clip_sample": 1}', "`clip_sample`: "),
    ],
)
def test_defaults_out_of_range(model_folder: Path, file: str, content: str, reason: str) -> None:
    (model_folder / "scheduler").mkdir(exist_ok=True)
    (model_folder / file).write_text(content)
    assert reason in error_of(model_folder)


def test_model_hash_follows_content_alone(model_folder: Path, tmp_path: Path) -> None:
    first = model_hash(model_folder)
    copied = Path(shutil.copytree(model_folder, tmp_path / "copy"))
    (copied / "README.md").write_text("not read by loading")
    assert len(first) == 64
    assert model_hash(copied) == first
    write_json(copied / "ea.json", {"steps": 10})
    second = model_hash(copied)
    tensors = load_file(copied / VAE_FILE)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, copied / VAE_FILE)
    assert len({first, second, model_hash(copied)}) == 3


def test_whole_numbers_for_weights_are_refused_in_one_line(model_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = next((model_folder / "transformer").glob("*.safetensors"))
    tensors = load_file(path)
    name = next(key for key, value in tensors.items() if value.is_floating_point())
    tensors[name] = tensors[name].to(torch.int32)
    save_file(tensors, path)
    with pytest.raises(UserError, match="must be of the kind"):
        load_parts(model_folder, parts=("denoiser",))
