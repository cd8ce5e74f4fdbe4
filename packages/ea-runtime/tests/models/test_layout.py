"""A model by its name or folder, its settings with each limit, and the classes that its parts name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ea_runtime.errors import UserError
from ea_runtime.models import layout
from ea_runtime.models.layout import (
    BUNDLED,
    MODELS_DIR,
    PARTS,
    PREPROCESSOR_FOLDERS,
    GenerationDefaults,
    NoiseSchedule,
    bundled_folder,
    class_name,
    known_models,
    models_dir,
    read_defaults,
    resolve_folder,
)


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def model(folder: Path, marker: str = "model_index.json") -> Path:
    (folder / marker).parent.mkdir(parents=True, exist_ok=True)
    (folder / marker).write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """EA_MODELS_DIR, with the models "mine" and "other"; the working folder is another one."""
    folder = tmp_path / "models"
    model(folder / "other", "vae/config.json")
    model(folder / "mine")
    (folder / "notes").mkdir()
    (folder / "file.txt").write_text("x")
    monkeypatch.setenv(MODELS_DIR, f" {folder} ")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


# --- names ---------------------------------------------------------------------------------------------------


def test_a_name_is_bundled_or_a_models_or_a_path(models: Path, tmp_path: Path) -> None:
    bundled = resolve_folder("tiny")
    assert (bundled / "vae" / "config.json").is_file()
    assert BUNDLED == ("tiny",)
    assert resolve_folder("mine") == models / "mine"
    assert resolve_folder(models / "notes") == models / "notes"
    assert resolve_folder(".") == Path()
    assert resolve_folder("..") == Path("..")
    for name in ("tiny", "mine", "local"):
        (tmp_path / "here" / name).mkdir()
    assert resolve_folder("tiny") == bundled
    assert resolve_folder("mine") == models / "mine"
    assert resolve_folder("local") == Path("local")
    assert resolve_folder("./tiny") == Path("tiny")
    assert resolve_folder("./mine") == Path("mine")


def test_a_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert resolve_folder("~/models/mine") == tmp_path / "models" / "mine"
    monkeypatch.setenv(MODELS_DIR, "~/models")
    assert models_dir() == tmp_path / "models"
    monkeypatch.setenv(MODELS_DIR, "  ")
    assert models_dir() is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "`model` must be a bundled name (tiny) or a folder, got ''"),
        ("a\0b", "`model` must be a bundled name (tiny) or a folder, got"),
        ("tinny", "called 'tinny'; there are: tiny, mine, other; or give a model folder; did you mean 'tiny'?"),
        ("notes/gone", "there is no model folder 'notes/gone'; give an existing folder or one of: tiny, mine, other"),
        ("file", "`model` must be a folder, got the file 'file'; give the folder that holds vae/ and transformer/"),
        ("~no-such-user/x", "`model` '~no-such-user/x' cannot be read: "),
        ("x" * 5000, "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_model(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "here" / "file").write_text("x")
    assert message in refused(resolve_folder, name)


def test_the_models_there_are(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = ("tiny", bundled_folder("tiny"), "bundled")
    assert list(known_models()) == [
        bundled,
        ("mine", models / "mine", MODELS_DIR),
        ("other", models / "other", MODELS_DIR),
    ]
    for value in ("", str(models / "gone"), str(models / "file.txt")):
        monkeypatch.setenv(MODELS_DIR, value)
        assert list(known_models()) == [bundled]
        assert refused(resolve_folder, "mine").endswith("there are: tiny; or give a model folder")
    monkeypatch.setattr(layout, "BUNDLED", ("none",))
    assert list(known_models()) == []
    assert refused(bundled_folder, "none").startswith("the bundled model 'none' is not in this installation")


@pytest.mark.parametrize("part", ["vae", "denoiser", "text"])
def test_a_folder_with_any_part_is_a_model(models: Path, part: str) -> None:
    model(models / "part", f"{PARTS[part].folder}/config.json")
    assert "part" in [name for name, _, _ in known_models()]


# --- classes -------------------------------------------------------------------------------------------------


def test_parts_and_their_places() -> None:
    assert {name: (spec.name, spec.folder, spec.kind, spec.package) for name, spec in PARTS.items()} == {
        "vae": ("vae", "vae", "vaes", "ea-vae"),
        "denoiser": ("denoiser", "transformer", "denoisers", "ea-dit"),
        "text": ("text", "text_encoder", "text_encoders", "ea-runtime"),
    }
    assert [spec.class_names for spec in PARTS.values()] == [
        ("AutoencoderKL", "AutoencoderKLMagvit"),
        ("Transformer2DModel", "Transformer3DModel"),
        ("T5EncoderModel",),
    ]
    assert PREPROCESSOR_FOLDERS == (
        "image_encoder",
        "image_processor",
        "clip_image_processor",
        "feature_extractor",
    )
    with pytest.raises(AttributeError):
        PARTS["vae"].folder = "x"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"_class_name": "Own_1"}, "Own_1"),
        ({"_class_name": "A", "architectures": ["B"], "model_type": "t5"}, "A"),
        ({"architectures": ["B"], "model_type": "t5"}, "B"),
        ({"architectures": ["B", "C"], "model_type": "t5"}, "T5EncoderModel"),
        ({"model_type": "t5"}, "T5EncoderModel"),
        ({"_class_name": "x" * 100}, "x" * 100),
    ],
)
def test_the_class_that_a_config_names(config: dict[str, Any], name: str) -> None:
    assert class_name(config, PARTS["text"]) == name


@pytest.mark.parametrize(
    "config",
    [
        *({"_class_name": value} for value in ("os.system", "../x", "", "1x", "x" * 101, 7, ["x"], "x\n")),
        {"architectures": ["B", "C"]},
        {"architectures": "B"},
        {"architectures": [7]},
        {"model_type": "t4"},
        {},
    ],
)
def test_a_config_that_names_no_class(config: dict[str, Any]) -> None:
    line = refused(class_name, config, PARTS["denoiser"])
    assert line.startswith("transformer/config.json must name its class as `_class_name`, got ")
    assert line.endswith("; a denoiser of this project says 'Transformer3DModel'")


# --- settings ------------------------------------------------------------------------------------------------


def defaults(folder: Path, values: dict[str, Any]) -> GenerationDefaults:
    (folder / "ea.json").write_text(json.dumps(values))
    return read_defaults(folder)[1]


def test_the_settings_of_v2_are_those_without_a_file(models: Path) -> None:
    found = read_defaults(models / "mine")[1]
    assert found.model_dump() == {
        "height": 384,
        "width": 672,
        "num_frames": 144,
        "fps": 24,
        "steps": 50,
        "guidance": 6.0,
        "sampler": "dpm++",
        "seed": 43,
        "keep_known": False,
    }
    with pytest.raises(ValueError, match="frozen"):
        found.height = 1
    assert defaults(models / "mine", {"height": 64, "later": 1}).height == 64
    assert read_defaults("mine")[1].height == 64


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("height", (8, 16384), (7, 16385, 8.0, "8", True)),
        ("width", (8, 16384), (7, 16385)),
        ("num_frames", (1, 100_000), (0, 100_001)),
        ("fps", (1, 1000), (0, 1001, 12.5)),
        ("steps", (1, 1000), (0, 1001)),
        ("guidance", (0.0, 1000.0, 6), (-0.1, 1000.1, float("nan"), float("inf"), "6")),
        ("sampler", ("a", "x" * 64, "dpm++", "a_b-0"), ("", "x" * 65, "A", "a b", "a/b", 7)),
        ("seed", (0, (1 << 32) - 1), (-1, 1 << 32)),
        ("keep_known", (True, False), (1, "true")),
    ],
)
def test_each_setting_has_limits(models: Path, key: str, good: tuple[Any, ...], bad: tuple[Any, ...]) -> None:
    for value in good:
        assert getattr(defaults(models / "mine", {key: value}), key) == value
    for value in bad:
        line = refused(defaults, models / "mine", {key: value})
        assert line.startswith("ea.json in model folder")
        assert f"`{key}`" in line


SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 4,
    "beta_start": 0.1,
    "beta_end": 0.2,
    "beta_schedule": "linear",
}


def schedule(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))
    return read_defaults(folder)[0]


def test_the_noise_that_a_model_was_trained_with(models: Path) -> None:
    found = schedule(models / "mine", SCHEDULE)
    assert {key: found[key] for key in SCHEDULE} == SCHEDULE
    assert read_defaults(models / "other")[0]["num_train_timesteps"] == 1000
    betas = [0.1, 0.2, 0.3, 0.4]
    assert NoiseSchedule(**SCHEDULE, trained_betas=betas).trained_betas == betas
    assert NoiseSchedule(**SCHEDULE).model_dump() == {  # as diffusers' schedulers have it
        **SCHEDULE,
        "trained_betas": [],
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": False,
        "clip_sample": False,
        "clip_sample_range": 1.0,
    }


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("num_train_timesteps", (1, 100_000), (0, 100_001, 4.0)),
        ("beta_start", (1e-9, 0.2), (0.0, 0.21, 1.0, float("nan"))),
        ("beta_end", (0.1, 0.999), (0.09, 1.0, 0.0)),
        ("beta_schedule", ("linear", "scaled_linear", "squaredcos_cap_v2"), ("cosine",)),
        (
            "trained_betas",
            ([0.1, 0.2, 0.3, 0.4],),
            ([0.1] * 3, [0.1] * 5, [0.1, 0.2, 0.3, 1.0], [0.0] * 4, 7),
        ),
        ("prediction_type", ("epsilon", "v_prediction", "sample"), ("flow",)),
        ("rescale_betas_zero_snr", (True, False), (1,)),
        ("clip_sample", (False, True), (1,)),
        ("clip_sample_range", (0.5,), (0.0, -1.0, float("inf"))),
    ],
)
def test_each_number_of_the_noise_has_limits(
    models: Path, key: str, good: tuple[Any, ...], bad: tuple[Any, ...]
) -> None:
    for value in good:
        assert schedule(models / "mine", {**SCHEDULE, key: value})[key] == value
    for value in bad:
        line = refused(schedule, models / "mine", {**SCHEDULE, key: value})
        assert line.startswith("scheduler/scheduler_config.json in ")
        assert f"`{key}" in line
