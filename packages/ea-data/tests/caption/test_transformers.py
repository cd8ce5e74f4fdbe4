"""`transformers` on a tiny LLaVA with random weights: the adapter runs the real classes of the right architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ea_data.caption.transformers import TransformersCaptioner, TransformersOptions
from ea_data.protocols import Frames
from ea_runtime.errors import UserError

FRAMES = Frames(np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3)).astype(np.uint8), np.arange(2.0))
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<pad>", "</s>", "<unk>", "<image>", *(f"w{number}" for number in range(60))]
    core: Any = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("llava")
    network = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    )
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_it_describes_a_clip_and_says_the_same_again(model: Path) -> None:
    options = TransformersOptions(model=str(model), prompt="w1 w2", frames=2, max_tokens=6)
    captioner = TransformersCaptioner(options)
    assert captioner.missing() == []
    caption = captioner(FRAMES, {"clip_id": "c"})
    assert caption.text
    assert "w1 w2" not in caption.text[:5], "the question is no part of the answer"
    assert caption.model == str(model)
    assert len(caption.prompt_hash) == 64
    assert TransformersCaptioner(options)(FRAMES, {}).text == caption.text


def test_bf16_runs_too(model: Path) -> None:
    options = TransformersOptions(model=str(model), prompt="w1", frames=1, max_tokens=2, dtype="bf16")
    assert TransformersCaptioner(options)(FRAMES, {}).text


def test_lost_weights_would_be_random_and_are_refused(model: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    state = load_file(broken / "model.safetensors")
    dropped = next(name for name in state if "q_proj" in name)
    save_file(
        {n: t for n, t in state.items() if n != dropped}, broken / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=r"lacks weights, first .*q_proj"):
        TransformersCaptioner(TransformersOptions(model=str(broken), max_tokens=2))(FRAMES, {})


def test_code_that_comes_with_a_model_is_not_run_unasked(model: Path, tmp_path: Path) -> None:
    import shutil

    foreign = tmp_path / "foreign"
    shutil.copytree(model, foreign)
    ran = tmp_path / "ran"
    (foreign / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config = json.loads((foreign / "config.json").read_text())
    config |= {
        "model_type": "foreign",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.M"},
    }
    (foreign / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded"):
        TransformersCaptioner(TransformersOptions(model=str(foreign)))(FRAMES, {})
    assert not ran.exists()
    assert not TransformersOptions().trust_remote_code


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "`model` is not set"),
        ("nobody/nothing-at-all", "not in the local cache; set download = true"),
        ("a b//c", "is no folder and not in the local cache"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(name: str, told: str, tmp_path: Path) -> None:
    captioner = TransformersCaptioner(TransformersOptions(model=name))
    (line,) = captioner.missing()
    assert told in line
    with pytest.raises(UserError):
        captioner(FRAMES, {})
    (line,) = TransformersCaptioner(TransformersOptions(model=str(tmp_path))).missing()
    assert "config.json; give a model folder" in line


def test_frames_as_a_video_go_to_the_processor_as_one() -> None:
    class Stop(Exception):
        pass

    class Processor:
        def apply_chat_template(self, question: list, **more: object) -> None:
            raise Stop(question)

    captioner = TransformersCaptioner(TransformersOptions(model="x", frames_as="video"))
    captioner._parts = (Processor(), None)
    with pytest.raises(Stop) as told:
        captioner(FRAMES, {})
    content = told.value.args[0][0]["content"]
    assert [part["type"] for part in content] == ["video", "text"]
    assert len(content[0]["video"]) == 2
