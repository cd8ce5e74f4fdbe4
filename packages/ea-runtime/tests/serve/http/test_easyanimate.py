"""EasyAnimate's three endpoints, asked as its own client asks: JSON without a Content-Type."""

from __future__ import annotations

import base64
import json
from typing import Any


def post(server: Any, name: str, data: Any, **headers: str) -> Any:
    with server.client() as client:
        request = client.build_request("POST", f"/easyanimate/{name}", content=json.dumps(data).encode())
        request.headers.pop("content-type", None)
        request.headers.update(headers)
        answer = client.send(request)
    assert answer.status_code == 200, answer.text
    return answer.json()


THEIRS = {
    "base_model_path": "none",
    "motion_module_path": "none",
    "lora_model_path": "none",
    "lora_alpha_slider": 0.55,
    "prompt_textbox": "a red circle",
    "negative_prompt_textbox": "blur",
    "sampler_dropdown": "Euler A",
    "sample_step_slider": 5,
    "width_slider": 64,
    "height_slider": 64,
    "is_image": False,
    "length_slider": 9,
    "cfg_scale_slider": 6,
    "seed_textbox": 43,
}


def test_a_video(server: Any) -> None:
    found = post(server, "infer_forward", THEIRS)
    assert set(found) == {"message", "save_sample_path", "base64_encoding"}
    assert found["message"] == "Success"
    assert base64.b64decode(found["base64_encoding"]) == server.video
    job = server.store.get(found["save_sample_path"].removesuffix(".mp4"))
    settings = job.request["settings"]
    assert (settings["sampler"], settings["num_inference_steps"], settings["seed"]) == ("euler-a", 5, 43)
    assert (settings["guidance_scale"], settings["num_frames"], settings["negative_prompt"]) == (6, 9, "blur")


def test_a_picture(server: Any) -> None:
    for more in ({"is_image": True}, {"generation_method": "Image Generation"}):
        assert post(server, "infer_forward", {**THEIRS, **more})["save_sample_path"].endswith(".png")


def test_errors_are_messages(server: Any) -> None:
    for more, word in (
        ({"prompt_textbox": "please fail"}, "memory"),
        ({"prompt_textbox": None}, "prompt"),
        ({"width_slider": 70}, "size"),
        ({"sampler_dropdown": "Nope"}, "sampler"),
        ({"lora_model_path": "/models/inkline.safetensors"}, "no LoRA is called 'inkline'"),
        ({"base_model_path": "models/base.safetensors"}, "base_model_path"),
    ):
        found = post(server, "infer_forward", {**THEIRS, **more})
        assert list(found) == ["message"]
        assert found["message"].startswith("Error. error information is ")
        assert word in found["message"]


def test_the_choice_of_a_model_is_each_clients_own(server: Any) -> None:
    chosen = {"diffusion_transformer_path": "models/Diffusion_Transformer/tiny"}
    assert post(server, "update_diffusion_transformer", chosen) == {"message": "Success"}
    missing = post(server, "update_diffusion_transformer", {"diffusion_transformer_path": "none"})
    assert "no model is called 'none'" in missing["message"]
    assert post(server, "update_edition", {"edition": "v2"}) == {"message": "Success"}
    assert "v1 or v2" in post(server, "update_edition", {"edition": "v5"})["message"]


def test_a_form_is_refused(server: Any) -> None:
    with server.client() as client:
        assert client.post("/easyanimate/infer_forward", data={"prompt_textbox": "x"}).status_code == 415
