"""Sidecars: where they go, what comes back, and what is refused."""

from __future__ import annotations

import json
import os

import pytest

from ea_runtime.errors import UserError
from ea_runtime.files.hashes import content_hash
from ea_runtime.generation.sidecar import plan_sidecar, read_sidecar, request_of, versions, write_sidecar
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
    assert {"python", "ea-runtime", "torch", "diffusers", "av"} <= set(versions())
