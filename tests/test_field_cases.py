"""Lists, captions, prompts and pictures from public reports; a twin of each makes its own files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ea_data.caption.files import FolderCaptioner, FolderOptions
from ea_data.protocols import Frames
from ea_data.training.dataset_json import read_list
from ea_data.training.doctor import diagnose
from ea_runtime.cli.generate.plan import make_plan
from ea_runtime.errors import UserError
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.settings import read_toml
from ea_runtime.training.data.dataset import SetOptions
from ea_runtime.video.reader import read_frames

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "cases" / "generation"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the field cases are not here: {FOLDER}")


def copied(name: str, tmp_path: Path) -> Path:
    """A writable copy: caches are kept next to a set."""
    folder = tmp_path / "set"
    folder.mkdir()
    for path in (FOLDER / name).iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


LISTS = ["csv_bom/dataset.csv", "list_csv_semicolon", "list_jsonl/list.jsonl", "toml_json_bom"]


@pytest.mark.parametrize("name", LISTS)
def test_lists(name):
    entries = read_list(FOLDER / name)
    assert entries.texts == ["a, café 0", "a, café 1", "a, café 2"]
    assert [(entries.root / one).is_file() for one in entries.names] == [True] * 3


def test_a_comma_in_a_caption_is_an_error_with_its_line():
    with pytest.raises(UserError, match=r"dataset\.csv', line 2: has 3 columns, but the header has 2; put"):
        read_list(FOLDER / "csv_comma_caption")


def test_sizes_from_before_a_rotation(tmp_path):
    options = SetOptions(path=str(copied("exif_entry_size/set", tmp_path)))
    assert diagnose(options, batch_size=1, workers=1).is_healthy


def test_a_config_with_a_byte_order_mark():
    assert read_toml(FOLDER / "toml_json_bom" / "lora.toml", "config")["card"]["trigger_words"] == ["inkline"]


CAPTIONS = {
    "plain": "a red thing",
    "bom": "a red thing",
    "utf16": "a red thing",
    "UPPER": "upper",
    "cap": "kohya caption ext",
    "dbl": "double ext",
    "tags": "1girl, solo, red_hair, (masterpiece:1.2)",
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions(tmp_path, name):
    folder = copied("captions", tmp_path)
    read = FolderCaptioner(FolderOptions())
    nothing = Frames(np.zeros(0), np.zeros(0))
    assert read(nothing, {"path": str(folder / f"{name}.png")}).text == CAPTIONS[name]


def test_a_caption_in_another_encoding_is_one_line(tmp_path):
    path = copied("captions", tmp_path) / "cp1252.png"
    with pytest.raises(UserError, match="UTF-8"):
        FolderCaptioner(FolderOptions())(Frames(np.zeros(0), np.zeros(0)), {"path": str(path)})


def test_prompts_with_a_line_separator_inside():
    plan = make_plan(ModelRequest(num_frames=1), prompts=str(FOLDER / "prompts_u2028" / "prompts.txt"))
    assert [job.settings["prompt"] for job in plan.jobs] == [
        "a red circle moves right\u2028slowly",
        "a blue square",
    ]


def test_pictures_of_all_kinds_show_one_picture():
    shown = {
        path.stem: next(read_frames(path)).astype(int)
        for path in sorted((FOLDER / "pictures_16bit_and_alpha" / "set").glob("*.*"))
        if path.suffix != ".json"
    }
    for name in ("palette_trns", "rgba_black", "rgba_garbage"):
        assert np.abs(shown[name] - shown["rgb"]).max() <= 1
    grey = shown["rgb"] @ [0.299, 0.587, 0.114]
    for name in ("gray16", "gray_float01", "gray_i32", "la"):
        assert np.abs(shown[name] - grey[..., None]).max() <= 2
