"""The captions' own tokenizer, and T5's published layouts."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ea_runtime.errors import UserError
from ea_runtime.text.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

CAPTIONS = [
    "a red circle moves right",
    "a small blue square on a navy background moves left",
    "a red square. it grows",
]


def test_ids_are_t5s_and_words_are_whole() -> None:
    tokenizer = train_tokenizer(CAPTIONS)
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    ids = tokenizer("a red circle. moves right").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁a", "▁red", "▁circle", ".", "▁moves", "▁right", "</s>"]
    assert tokenizer("").input_ids == [1]
    assert len(tokenizer) <= 512


@pytest.mark.parametrize("text", ["unseen words", "猫 が 走る", "naïve ☃ 🙂 x", "a\u0301 %$#"])
def test_any_text_comes_back(text: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(CAPTIONS)
    save_tokenizer(tokenizer, tmp_path)
    for one in (tokenizer, load_tokenizer(tmp_path)):
        ids = one(text).input_ids
        assert 2 not in ids
        assert one.decode(ids, skip_special_tokens=True) == text


def test_saved_files_load_with_transformers_own_classes(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5TokenizerFast

    tokenizer = train_tokenizer(CAPTIONS)
    save_tokenizer(tokenizer, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"tokenizer.json", "tokenizer_config.json"}
    for cls in (AutoTokenizer, T5TokenizerFast):
        loaded = cls.from_pretrained(str(tmp_path))
        for text in ("a red circle moves right", "unseen", ""):
            wanted = tokenizer(text, padding="max_length", max_length=12, truncation=True)
            assert (
                loaded(text, padding="max_length", max_length=12, truncation=True).input_ids
                == wanted.input_ids
            )
        assert len(loaded) == len(tokenizer)


def test_same_captions_same_tokenizer() -> None:
    def vocabulary() -> str:
        return train_tokenizer(iter(CAPTIONS)).backend_tokenizer.to_str()

    assert vocabulary() == vocabulary()


def test_vocab_size_is_an_upper_bound() -> None:
    captions = [f"word{i} number{i}" for i in range(2000)]
    assert len(train_tokenizer(captions, 400)) == 400
    with pytest.raises(UserError, match="`vocab_size` must be 354 or more, got 100"):
        train_tokenizer(captions, 100)


def test_sentencepiece_layout(tmp_path: Path) -> None:
    """The published T5 folders hold spiece.model; its ids must be SentencePiece's own."""
    spm = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20), model_writer=model, vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    tokenizer = load_tokenizer(tmp_path)
    pieces = spm.SentencePieceProcessor(model_proto=model.getvalue())
    for text in ("a red circle moves right", "two  ﬁne cats 猫", ""):
        assert tokenizer(text).input_ids == [*pieces.encode(text), 1]
    again = tmp_path / "again"
    save_tokenizer(tokenizer, again)
    assert load_tokenizer(again)("a red square").input_ids == tokenizer("a red square").input_ids


def test_missing_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tokenizer; expected tokenizer\.json or spiece\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_remote_code_is_not_looked_at(tmp_path: Path) -> None:
    save_tokenizer(train_tokenizer(CAPTIONS), tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        config.read_text().replace("{", '{"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},', 1)
    )
    assert load_tokenizer(tmp_path)("a").input_ids[-1] == 1
