"""The text encoder: padding, the cut, loading and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ea_runtime.errors import UserError
from ea_runtime.text.encoder import MAX_LENGTH, TextEncoder, check_prompt, train_tokenizer

CAPTIONS = ["a red circle moves right", "a blue square on a navy background"]


def make_encoder(**config: int) -> TextEncoder:
    tokenizer = train_tokenizer(CAPTIONS)
    torch.manual_seed(0)
    settings = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4} | config
    return TextEncoder(
        T5EncoderModel(T5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **settings)),
        tokenizer,
    )


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return make_encoder()


@pytest.fixture
def folder(encoder: TextEncoder, tmp_path: Path) -> Path:
    encoder.save_pretrained(tmp_path)
    return tmp_path


def test_padding_and_mask(encoder: TextEncoder) -> None:
    encoded = encoder.encode(["a red circle moves right", ""])
    assert encoded.embeds.shape == (2, MAX_LENGTH, encoder.width)
    assert encoded.embeds.dtype == torch.float32
    assert encoded.mask.shape == (2, MAX_LENGTH)
    assert encoded.mask.dtype == torch.int64
    assert encoded.mask.sum(1).tolist() == [6, 1]  # five words and </s>; </s>
    assert encoded.mask[0, :6].all()
    assert encoded.num_tokens == [5, 0]
    assert encoded.truncated == ["", ""]
    assert encoded.notes() == []
    assert not encoded.embeds.requires_grad


def test_padding_changes_no_token(encoder: TextEncoder) -> None:
    short = encoder.encode(["a red circle"], max_length=4).embeds
    long = encoder.encode(["a red circle"], max_length=40).embeds
    torch.testing.assert_close(long[:, :4], short, rtol=1e-5, atol=1e-5)


def test_ids_are_those_of_the_tokenizers_own_padding(encoder: TextEncoder) -> None:
    texts = ["a red circle moves right", "", "word " * 200, "a 猫"]
    ids, mask, _, _ = encoder.tokenize(texts, 20)
    wanted = encoder.tokenizer(
        texts, padding="max_length", max_length=20, truncation=True, return_tensors="pt"
    )
    assert torch.equal(ids, wanted["input_ids"])
    assert torch.equal(mask, wanted["attention_mask"])


def test_prompts_are_cleaned(encoder: TextEncoder) -> None:
    encoded = encoder.encode(["A <b>Red</b>   CIRCLE, 1920x1080", "a red circle"])
    assert encoded.cleaned == ["a red circle", "a red circle"]
    assert torch.equal(encoded.embeds[0], encoded.embeds[1])


def test_what_is_cut_is_told(encoder: TextEncoder) -> None:
    words = ["red"] * 119 + ["circle", "right"]
    exact = encoder.encode([" ".join(words[:119])])
    assert exact.truncated == [""]
    assert exact.mask.sum() == 120
    encoded = encoder.encode([" ".join(words), "a red circle"])
    assert encoded.truncated == ["circle right", ""]
    assert encoded.notes() == ["the prompt has 121 tokens, and the last 2 are not seen: 'circle right'"]
    assert torch.equal(encoded.embeds[0], exact.embeds[0])
    long = encoder.encode(["red " * 4000])
    assert len(long.notes()[0]) < 500


def test_words_without_a_token_are_told(encoder: TextEncoder) -> None:
    assert encoder.encode(["a красный 🎉 circle"]).notes() == []  # this tokenizer spells all in bytes
    vocabulary = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>", "▁a", "▁circle", "▁", ".")]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    found = TextEncoder(encoder.model, tokenizer).encode(["a красный circle. 🎉", "a circle", "🎉 🎉"])
    assert found.unknown == [["красный", "🎉"], [], ["🎉"]]
    assert "cannot read these words of the prompt: красный, 🎉; write others" in found.notes()[0]


def test_encode_tokens(encoder: TextEncoder) -> None:
    ids, mask, _, _ = encoder.tokenize(["a red circle"], MAX_LENGTH)
    assert torch.equal(encoder.encode_tokens(ids, mask), encoder.encode(["a red circle"]).embeds)


def test_one_string_is_one_prompt(encoder: TextEncoder) -> None:
    assert encoder.encode("a red circle").embeds.shape[0] == 1


def test_bad_prompts(encoder: TextEncoder) -> None:
    with pytest.raises(UserError, match="`prompt` must take at most 16,384 bytes"):
        encoder.encode(["a", "x" * 1_000_000])
    with pytest.raises(UserError, match="at least one prompt"):
        encoder.encode([])
    with pytest.raises(UserError, match="`max_length` must be 1 or more tokens, got 0"):
        encoder.encode(["a"], max_length=0)


@pytest.mark.parametrize("prompt", ["a \ud800 circle", "caf\udce9"])
def test_text_without_a_form_in_utf8(prompt: str) -> None:
    with pytest.raises(
        UserError, match=r"`prompt` must be text in UTF-8, got '\\ud[8c]\w+' as character [34]; "
    ):
        check_prompt(prompt)


def test_round_trip(encoder: TextEncoder, folder: Path) -> None:
    loaded = TextEncoder.from_pretrained(folder)
    assert torch.equal(loaded.encode(CAPTIONS).embeds, encoder.encode(CAPTIONS).embeds)
    assert loaded.device == torch.device("cpu")
    assert loaded.dtype == torch.float32
    half = TextEncoder.from_pretrained(str(folder), dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.encode(["a"]).embeds.dtype == torch.bfloat16
    assert half.to(dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("activation", ["gated-gelu", "relu", "gated-silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bits_are_those_of_transformers(activation: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}
    config = T5Config(vocab_size=len(tokenizer), feed_forward_proj=activation, **sizes)
    TextEncoder(T5EncoderModel(config), tokenizer).save_pretrained(tmp_path)
    theirs: Any = T5EncoderModel.from_pretrained(str(tmp_path / "text_encoder"), dtype=dtype)
    ours = TextEncoder.from_pretrained(tmp_path, dtype=dtype).model
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype == tensor.dtype
    assert state["shared.weight"].data_ptr() == state["encoder.embed_tokens.weight"].data_ptr()
    ids = torch.randint(3, len(tokenizer), (2, 40))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        for given in (None, mask, mask.index_fill(1, torch.arange(9, 40), 0)):
            wanted = theirs(input_ids=ids, attention_mask=given).last_hidden_state
            assert torch.equal(ours(ids, given).last_hidden_state, wanted)


def test_shards_load(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    part = tmp_path / "text_encoder"
    (part / "model.safetensors").unlink()
    encoder.model.save_pretrained(str(part), max_shard_size="40KB")
    index = part / "model.safetensors.index.json"
    assert len(list(part.glob("*.safetensors"))) > 1
    assert torch.equal(
        TextEncoder.from_pretrained(tmp_path).encode(["a"]).embeds, encoder.encode(["a"]).embeds
    )

    text = index.read_text()
    shard = sorted(part.glob("*.safetensors"))[0].name
    index.write_text(text.replace(shard, f"../{shard}"))
    with pytest.raises(UserError, match=r"must map tensors to \.safetensors files"):
        TextEncoder.from_pretrained(tmp_path)
    index.write_text(text)
    (part / shard).unlink()
    with pytest.raises(UserError, match=f"lacks the shard '{shard}'"):
        TextEncoder.from_pretrained(tmp_path)


def test_pickles_are_refused(folder: Path) -> None:
    part = folder / "text_encoder"
    (part / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights; expected model\.safetensors"):
        TextEncoder.from_pretrained(folder)
    (part / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(
        UserError, match=r"is pickled \(pytorch_model\.bin\).*`ea models convert .*`"
    ) as caught:
        TextEncoder.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda part: shutil.rmtree(part), "has no text_encoder folder"),
        (lambda part: (part / "config.json").unlink(), r"config\.json.* is missing"),
        (lambda part: (part / "config.json").write_text("{"), r"config\.json.* is no valid JSON"),
        (lambda part: (part / "config.json").write_text("[]"), "must hold a JSON object"),
        (
            lambda part: (part / "config.json").write_text('{"model_type": "bert"}'),
            "must be a T5 .* got 'bert'",
        ),
        (lambda part: (part / "model.safetensors").write_bytes(b"\0" * 100), "cannot be loaded"),
        (lambda part: shutil.rmtree(part.parent / "tokenizer"), "holds no tokenizer"),
    ],
)
def test_damaged_folders(damage, message: str, folder: Path) -> None:
    damage(folder / "text_encoder")
    with pytest.raises(UserError, match=message) as caught:
        TextEncoder.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_missing_and_misshapen_tensors(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "text_encoder" / "model.safetensors"
    # written over below, which old versions of safetensors do in place, under the mapped tensors
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    lacking = {key: value for key, value in tensors.items() if "block.1" not in key}
    save_file(lacking, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks \d+ tensors, as 'encoder\.block\.1"):
        TextEncoder.from_pretrained(folder)
    save_file(tensors, path, metadata={"format": "pt"})
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"d_ff": 48}))
    with pytest.raises(UserError, match="cannot be loaded"):
        TextEncoder.from_pretrained(folder)
