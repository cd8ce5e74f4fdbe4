"""Sidecars: where they go, what comes back, and what is refused."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ea_runtime.errors import UserError
from ea_runtime.files.hashes import content_hash
from ea_runtime.generation import sidecar
from ea_runtime.generation.sidecar import (
    describes,
    plan_sidecar,
    read_recorded,
    read_sidecar,
    request_of,
    versions,
    write_sidecar,
)
from ea_runtime.video.output import plan_output

RECORD = {
    "settings": {
        "prompt": "ein Kreis, größer",
        "negative_prompt": "",
        "num_frames": 9,
        "height": 32,
        "width": 32,
        "num_inference_steps": 2,
        "guidance_scale": 4.0,
        "sampler": "dpm++",
        "seed": 43,
        "smooth": True,
    },
    "fps": 12,
    "model": {"name": "tiny", "sha256": "0" * 64},
    "device": {"device": "cpu", "dtype": "float32"},
    "versions": {"torch": "2"},
    "output": {"file": "out.mp4", "kind": "mp4", "sha256": "0" * 64},
}


def test_what_is_written_comes_back(tmp_path):
    write_sidecar(tmp_path / "out.json", RECORD)
    assert read_sidecar(tmp_path / "out.json") == {"ea_sidecar": 1} | RECORD
    assert "größer" in (tmp_path / "out.json").read_text(encoding="utf-8")
    assert os.listdir(tmp_path) == ["out.json"]


TEXTS = st.text('a\u00dc\u5706\U0001f600\n"\\/{\u2028\x7f', max_size=6)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    values=st.fixed_dictionaries(
        {"prompt": TEXTS, "negative_prompt": TEXTS, "seed": st.integers(), "guidance_scale": NUMBERS},
        optional={
            "image": TEXTS,
            "strength": NUMBERS,
            "window": st.integers(),
            "loop": st.booleans(),
            "prompts_at": st.lists(st.lists(TEXTS, max_size=2), max_size=2),
        },
    ),
    fps=NUMBERS,
    loras=st.lists(st.fixed_dictionaries({"file": TEXTS, "sha256": TEXTS, "weight": NUMBERS}), max_size=2),
    notes=st.lists(TEXTS, max_size=2),
)
def test_any_record_comes_back_bit_exact(tmp_path_factory, values, fps, loras, notes):
    record = RECORD | {"settings": RECORD["settings"] | values, "fps": fps, "loras": loras, "notes": notes}
    path = tmp_path_factory.mktemp("sidecar") / "out.json"
    write_sidecar(path, record)
    again = read_sidecar(path)
    assert again == {"ea_sidecar": 1} | record
    write_sidecar(path, {name: value for name, value in again.items() if name != "ea_sidecar"})
    assert read_sidecar(path) == again


def test_its_text_is_for_people_and_holds_numbers_alone(tmp_path):
    path = tmp_path / "out.json"
    write_sidecar(path, RECORD)
    text = path.read_text(encoding="utf-8")
    assert text.startswith('{\n  "ea_sidecar": 1,\n  "settings": {\n    "prompt"')
    assert text.endswith("}\n")
    with pytest.raises(ValueError, match="Out of range float"):
        write_sidecar(path, RECORD | {"fps": float("nan")})
    assert path.read_text(encoding="utf-8") == text


def test_a_request_is_what_was_recorded():
    device = {"compiled": True, "cuda_graphs": True, "quantize": "text=int8", "attention": "flash"}
    used = RECORD | {
        "device": RECORD["device"] | device,
        "engine": {"name": "onnx", "bundle": "b"},
        "settings": RECORD["settings"] | {"window": 6, "prompts_at": [["3f", "x"]]},
    }
    machine = {
        "model": "tiny",
        "fps": 12,
        "device": "cpu",
        "dtype": "float32",
        "engine": "onnx",
        "bundle": "b",
        "compile": True,
        "cuda_graphs": True,
        "quantize": "text=int8",
        "attention": "flash",
    }
    again = request_of(used)
    assert {name: getattr(again, name) for name in machine} == machine
    assert again.settings == used["settings"]
    plain = request_of(RECORD)  # of one piece
    assert plain.settings == RECORD["settings"] | {"window": 9}
    assert {plain.engine, plain.bundle, plain.compile, plain.cuda_graphs, plain.lora} == {None}


def test_a_file_has_a_size_and_an_owner(tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    write_sidecar(path, RECORD)
    assert sidecar.MAX_BYTES == 4 << 20
    monkeypatch.setattr(sidecar, "MAX_BYTES", path.stat().st_size)
    assert describes(path) == "out.mp4"
    monkeypatch.setattr(sidecar, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(UserError, match="bytes and is no sidecar of"):
        read_sidecar(path)
    assert describes(path) is None
    monkeypatch.setattr(sidecar, "MAX_BYTES", 1 << 20)

    def fail(place):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sidecar, "read_text", fail)
    with pytest.raises(UserError, match=r"out.json' cannot be read: Permission denied$"):
        read_sidecar(path)


@pytest.mark.parametrize("name", ["out.json", "settings", "out.txt"])
def test_a_name_that_is_no_outputs_is_a_sidecar(tmp_path, name):
    write_sidecar(tmp_path / name, RECORD)
    assert read_recorded(tmp_path / name)["settings"] == RECORD["settings"]
    assert read_recorded(str(tmp_path / name)) == read_sidecar(tmp_path / name)


def test_a_folder_in_a_sidecars_place_is_not_replaced(tmp_path):
    (tmp_path / "out.json").mkdir()
    assert plan_sidecar(plan_output(tmp_path / "out.mp4", overwrite=True)) == tmp_path / "out.mp4.json"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_an_editors_mark_is_read_over(tmp_path, encoding):
    text = json.dumps({"ea_sidecar": 1} | RECORD, indent=2).replace("\n", "\r\n")
    (tmp_path / "out.json").write_bytes(text.encode(encoding))
    assert read_sidecar(tmp_path / "out.json") == {"ea_sidecar": 1} | RECORD


def test_what_changes_the_layers_is_repeated(tmp_path):
    device = {"quantize": "denoiser=int8,text=nf4", "attention": "flash"}
    write_sidecar(tmp_path / "out.json", RECORD | {"device": RECORD["device"] | device})
    again = request_of(read_sidecar(tmp_path / "out.json"))
    assert {"quantize": again.quantize, "attention": again.attention} == device
    plain = request_of(RECORD)
    assert (plain.quantize, plain.attention) == (None, None)


@pytest.mark.parametrize("device", [{"threads": "many"}, {"compiled": "yes"}, {"cuda_graphs": 1}])
def test_what_is_recorded_of_a_device_has_its_type(tmp_path, device):
    write_sidecar(tmp_path / "out.json", RECORD | {"device": RECORD["device"] | device})
    with pytest.raises(UserError, match=rf"`device\.{next(iter(device))}`"):
        read_sidecar(tmp_path / "out.json")


def test_a_link_that_leads_nowhere_is_not_replaced(tmp_path):
    (tmp_path / "out.json").symlink_to("nowhere.json")
    assert plan_sidecar(plan_output(tmp_path / "out.mp4")) == tmp_path / "out.mp4.json"


def test_where_it_goes(tmp_path):
    assert plan_sidecar(plan_output(tmp_path / "out.mp4")) == tmp_path / "out.json"
    assert plan_sidecar(plan_output(f"{tmp_path}/frames/")) == tmp_path / "frames.json"
    assert plan_sidecar(plan_output(f"{tmp_path}/take.2/")) == tmp_path / "take.2.json"
    write_sidecar(tmp_path / "out.json", RECORD)  # about out.mp4
    assert plan_sidecar(plan_output(tmp_path / "out.gif")) == tmp_path / "out.gif.json"
    with pytest.raises(UserError, match="exists already"):
        plan_sidecar(plan_output(tmp_path / "out.mp4"))
    assert plan_sidecar(plan_output(tmp_path / "out.mp4", overwrite=True)) == tmp_path / "out.json"


def test_a_file_that_is_no_sidecar_is_never_replaced(tmp_path):
    (tmp_path / "out.json").write_text("{}")
    output = plan_output(tmp_path / "out.mp4", overwrite=True)
    assert plan_sidecar(output) == tmp_path / "out.mp4.json"
    (tmp_path / "out.mp4.json").write_text("{}")
    with pytest.raises(UserError, match=r"not about 'out\.mp4'"):
        plan_sidecar(output)


def changed(**changes) -> dict:
    return {"ea_sidecar": 1} | RECORD | changes


BAD = [
    ("not json", "no valid JSON"),
    ("[" * 100_000, "no valid JSON"),
    ("[]", "no sidecar"),
    ("{}", "no sidecar"),
    ('["ea_sidecar"]', "no sidecar"),
    ('"ea_sidecar"', "no sidecar"),
    ("7", "no sidecar"),
    (json.dumps(changed(ea_sidecar=2)), "version 2"),
    (json.dumps(changed(settings=[])), "`settings`: must be a table of keys"),
    (json.dumps(changed(settings=RECORD["settings"] | {"seed": "1"})), "`settings.seed`"),
    (
        json.dumps(changed(settings=RECORD["settings"] | {"seed": True})),
        "`settings.seed`: Input should be a valid integer, got True",
    ),
    (json.dumps(changed(settings=RECORD["settings"] | {"on_step": "x"})), "unknown key `settings.on_step`"),
    (
        json.dumps(changed(settings={k: v for k, v in RECORD["settings"].items() if k != "prompt"})),
        "`settings.prompt` is missing",
    ),
    (json.dumps(changed(fps=None)), "`fps`"),
    (json.dumps(changed(model={})), "`model.name` is missing"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[m for _, m in BAD])
def test_damaged_ones_are_one_line(tmp_path, text, message):
    path = tmp_path / "out.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_sidecar(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_read_or_written(tmp_path):
    with pytest.raises(UserError, match="no sidecar file"):
        read_sidecar(tmp_path / "nothing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no valid JSON"):
        read_sidecar(tmp_path / "binary.json")
    with pytest.raises(UserError, match="cannot be written"):
        write_sidecar(tmp_path / "binary.json" / "out.json", RECORD)


def test_hashes_of_files_and_folders(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    assert content_hash(tmp_path / "a") == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "00000.png").write_bytes(b"x")
    before = content_hash(folder)
    (folder / "00000.png").rename(folder / "00001.png")
    assert content_hash(folder) != before


def test_versions_name_what_a_result_depends_on():
    found = versions()
    wanted = {
        "python",
        "platform",
        "ea-runtime",
        "torch",
        "diffusers",
        "transformers",
        "av",
        "pillow",
        "numpy",
    }
    assert wanted <= set(found)
    assert all(found.values())


def test_a_library_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(sidecar, "_LIBRARIES", ("no-such-library", "numpy"))
    found = versions()
    assert "no-such-library" not in found
    assert found["numpy"]


@pytest.mark.parametrize("part", ["settings", "fps", "model", "device", "versions", "output"])
def test_each_part_must_be_there(tmp_path, part):
    write_sidecar(tmp_path / "out.json", {name: value for name, value in RECORD.items() if name != part})
    with pytest.raises(
        UserError, match=f"key `{part}` is missing; the file is damaged, or a newer version wrote it"
    ):
        read_sidecar(tmp_path / "out.json")


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        *(("settings", {name: []}) for name in RECORD["settings"]),
        *(("settings", {name: 1}) for name in ("step_cache", "image", "image_end", "video", "mask")),
        *(("settings", {name: 1}) for name in ("fit", "posterior")),
        *(("settings", {name: "1"}) for name in ("strength", "clip_apply_ratio", "window", "loop", "prompts_at")),
        ("settings", {"join": 1}),
        ("settings", {"prompts_at": [["3f", 1]]}),
        *(("device", {name: []}) for name in ("device", "dtype", "quantize", "gguf_sha256", "attention")),
        *(("output", {name: 1}) for name in ("file", "kind", "sha256", "unsigned_sha256")),
        *(("model", {name: 1}) for name in ("name", "sha256")),
    ],
)  # fmt: skip
def test_each_value_has_its_type(tmp_path, where, wrong):
    """They go into a call and into paths."""
    write_sidecar(tmp_path / "out.json", RECORD | {where: RECORD[where] | wrong})
    with pytest.raises(UserError, match=rf"`{where}\.{next(iter(wrong))}"):
        read_sidecar(tmp_path / "out.json")


@pytest.mark.parametrize(
    "wrong",
    [
        {"loras": [{"file": "x", "sha256": "0"}]},
        {"inputs": {"image": 1}},
        {"engine": {"name": 1}},
        {"engine": {"name": "onnx", "bundle": 1}},
        {"joins": [{"frame": 1, "delta_e": 1.0, "sharpness": 1.0}]},
    ],
)
def test_parts_that_may_be_there_have_their_shape(tmp_path, wrong):
    write_sidecar(tmp_path / "out.json", RECORD | wrong)
    with pytest.raises(UserError, match=f"{next(iter(wrong))}"):
        read_sidecar(tmp_path / "out.json")


def test_other_keys_are_for_newer_versions_but_not_in_a_call(tmp_path):
    record = RECORD | {"future": 1, "device": RECORD["device"] | {"future": 1}}
    write_sidecar(tmp_path / "out.json", record)
    assert read_sidecar(tmp_path / "out.json") == {"ea_sidecar": 1} | record
