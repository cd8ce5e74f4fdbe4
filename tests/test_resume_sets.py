"""`ea train --resume` on a set that changed, moved, or is unchanged; in float32 on the CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from PIL import Image

import ea_runtime
from ea_runtime.cli.main import run

CONFIG: dict[str, Any] = {
    "stage": "magvit",
    "run": {"recipe": "vae", "out": "run"},
    "train": {"steps": 2, "batch_size": 2, "lr": 1e-3, "warmup": 1, "schedule": "constant", "threads": 1},
    "data": {"path": "set", "size": 32, "num_frames": 9, "decode": "inline"},
    "loss": {"perceptual": 0.0, "adversarial": 0.0},
    "model": {
        "ch": 4,
        "ch_mult": [1, 1, 1, 2],
        "layers_per_block": 1,
        "norm_num_groups": 1,
        "latent_channels": 4,
        "down_block_types": ["SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3],
        "up_block_types": ["SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3],
        "mid_block_attention_type": "3d",
        "mini_batch_encoder": 9,
        "mini_batch_decoder": 3,
    },
}
Rows = list[dict[str, Any]]
pytestmark = pytest.mark.usefixtures("leave_torch_alone")
MORE = ("--resume", "--set=train.steps=4")


#: A denoiser on the latents and text features of the bundled model.
DENOISER: dict[str, Any] = {
    "stage": "align",
    "run": {"recipe": "dit", "out": "dit"},
    "train": CONFIG["train"],
    "data": {"path": "set", "parts": str(Path(ea_runtime.__file__).parent / "tiny"), "num_frames": 18},
    "model": {
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "num_layers": 1,
        "cross_attention_dim": 32,
        "caption_channels": 64,
        "sample_size": 8,
        "motion_module_kwargs": {"num_attention_heads": 4, "temporal_position_encoding_max_len": 16},
    },
}


def ea(capsys: pytest.CaptureFixture[str], *words: str, recipe: str = "vae") -> tuple[int, str]:
    capsys.readouterr()
    code = run(["train", recipe, f"{recipe}.toml", *words])
    return code, capsys.readouterr().err


def write_list(rows: Rows) -> None:
    Path("set/dataset.json").write_text(json.dumps(rows))


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Rows:
    """The list of a set of six pictures, after two steps of a run on it."""
    monkeypatch.chdir(tmp_path)
    Path("set").mkdir()
    made = []
    for number in range(6):
        Image.new("RGB", (32, 32), (40 * number, 90, 200)).save(f"set/{number}.png", compress_level=0)
        made.append({"file_path": f"{number}.png", "text": f"picture {number}", "type": "image"})
    write_list(made)
    Path("vae.toml").write_text(tomli_w.dumps(CONFIG))
    assert ea(capsys)[0] == 0
    return made


def fewer(rows: Rows) -> None:
    write_list(rows[:4])


def another_caption(rows: Rows) -> None:
    write_list([{**rows[0], "text": "another"}, *rows[1:]])


def another_picture(rows: Rows) -> None:
    Image.new("RGB", (32, 32), (9, 9, 9)).save("set/3.png", compress_level=0)


def another_order(rows: Rows) -> None:
    write_list(rows[::-1])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (fewer, "2 files removed (4.png, 5.png)"),
        (another_caption, "1 caption changed (0.png)"),
        (another_picture, "1 file replaced (3.png)"),
        (another_order, "the order of the list changed"),
    ],
)
def test_a_changed_set_is_refused(
    change: Callable[[Rows], None], expected: str, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    change(rows)
    code, said = ea(capsys, *MORE)
    assert code == 2
    assert f"error: the set of the run in 'run' has changed since it began: {expected}; put it back" in said
    assert "another `out`" in said
    assert sorted(path.name for path in Path("run").glob("checkpoint-*")) == ["checkpoint-0", "checkpoint-2"]


def test_a_moved_set_goes_on_to_the_bit(rows: Rows, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("run", "moved")
    assert ea(capsys, *MORE)[0] == 0
    Path("new").mkdir()
    shutil.copytree("set", "new/place", ignore=shutil.ignore_patterns("cache"))
    shutil.rmtree("set")
    code, said = ea(capsys, *MORE, "--set=run.out=moved")
    assert code == 2
    assert "`data.path`" in said
    assert "moved to" in said
    code, said = ea(capsys, *MORE, "--set=run.out=moved", "--set=data.path=new/place")
    assert code == 0, said
    for name in ("checkpoint-4/state.safetensors", "checkpoint-4/state.json"):
        assert Path("run", name).read_bytes() == Path("moved", name).read_bytes()
    # a place is accepted for its contents, not for its name
    Image.new("RGB", (32, 32)).save("new/place/0.png")
    code, said = ea(
        capsys, "--resume", "--set=run.out=moved", "--set=data.path=new/place", "--set=train.steps=5"
    )
    assert code == 2
    assert "1 file replaced (0.png)" in said


def test_a_run_of_an_older_version_has_no_record(rows: Rows, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/set.jsonl").unlink()
    shutil.copytree("set", "other")
    code, said = ea(capsys, *MORE, "--set=data.path=other")
    assert code == 2
    assert "data.path ('set' -> 'other')" in said
    code, said = ea(capsys, *MORE)
    assert code == 0
    assert "no record of its set" in said
    assert len(Path("run/set.jsonl").read_text().splitlines()) == 6


def test_a_changed_set_is_refused_before_it_is_encoded(
    rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("dit.toml").write_text(tomli_w.dumps(DENOISER))
    code, said = ea(capsys, recipe="dit")
    assert code == 0, said
    assert "latents: 6 encoded" in said
    another_picture(rows)
    code, said = ea(capsys, *MORE, recipe="dit")
    assert code == 2
    assert "1 file replaced (3.png)" in said
    assert "coded" not in said
    # put back, and moved
    Image.new("RGB", (32, 32), (120, 90, 200)).save("set/3.png", compress_level=0)
    shutil.move("set", "elsewhere")
    assert ea(capsys, *MORE, "--set=data.path=elsewhere", recipe="dit")[0] == 0
