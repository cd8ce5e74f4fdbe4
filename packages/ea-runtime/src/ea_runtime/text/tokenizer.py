"""A small T5-compatible tokenizer, made from captions: how it is counted, saved and loaded.

The vocabulary is, in order: `<pad>` 0, `</s>` 1, `<unk>` 2 (T5's ids), the commonest words of the captions,
single characters, and the 256 bytes. A word outside the vocabulary is spelled in characters, and a character
outside it in bytes, so every prompt has tokens. Words are counted, not searched for by EM as SentencePiece
does: on a few hundred distinct words the result is the same and it is a pure function of the captions.

Source of the model: Kudo, Subword Regularization (unigram language model), https://arxiv.org/abs/1804.10959.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL = ("<pad>", "</s>", "<unk>")
NUM_BYTES = 256
WORD_START = "▁"  # Metaspace's mark of a word's first piece
_WORD = re.compile(r"[^\W_]+")
# A spelled-out character costs this much (a log probability): more than any counted word, less than a byte.
CHARACTER_SCORE = -15.0
BYTE_SCORE = -20.0


def train_tokenizer(captions: Iterable[str], vocab_size: int = 512) -> PreTrainedTokenizerBase:
    """A tokenizer whose vocabulary holds the captions' commonest words: at most `vocab_size` tokens.

    captions: the training texts, already cleaned and in lower case.
    vocab_size: an upper bound; fewer when the captions have fewer words. At least 354 (special tokens,
    printable
        ASCII and bytes).

    The same captions give the same tokenizer. Raises UserError for a `vocab_size` below what is always in.
    """
    words: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for caption in captions:
        words.update(_WORD.findall(caption))
        characters.update(caption)
    always = {WORD_START, *(set(string.printable) - set(string.whitespace))}
    room = vocab_size - len(SPECIAL) - NUM_BYTES - len(always)
    if room < 0:
        raise UserError(f"`vocab_size` must be {vocab_size - room} or more, got {vocab_size}; raise it")
    extra = [c for c in characters if c not in always and not c.isspace()]
    extra = sorted(extra, key=lambda c: (-characters[c], c))[: room // 4]
    ranked = sorted(words, key=lambda w: (-words[w], w))[: room - len(extra)]
    total = sum(words.values()) or 1
    vocabulary = [(token, 0.0) for token in SPECIAL]
    vocabulary += [
        (WORD_START + word, max(math.log(words[word] / total), CHARACTER_SCORE + 1)) for word in ranked
    ]
    # An empty word start is cheap: before a spelled-out word it must not count as a separate character.
    vocabulary += [(c, -1.0 if c == WORD_START else CHARACTER_SCORE) for c in sorted(always) + extra]
    vocabulary += [(f"<0x{byte:02X}>", BYTE_SCORE) for byte in range(NUM_BYTES)]
    return _build(vocabulary)


def _build(vocabulary: list[tuple[str, float]]) -> PreTrainedTokenizerBase:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=WORD_START, prepend_scheme="always"),
        ]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(WORD_START, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        unk_token=SPECIAL[2],
        extra_ids=0,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and whatever else the tokenizer's class keeps."""
    tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        # The name that transformers 4 and 5 both know.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads a `tokenizer/` folder: T5's own layout (spiece.model, or tokenizer.json), or one that we saved.

    The class is chosen here from two known ones, so no code in or behind the folder is run whatever its
    config says. Raises UserError where the folder holds no tokenizer or a damaged one.
    """
    has_json, has_spiece = (folder / "tokenizer.json").is_file(), (folder / "spiece.model").is_file()
    if not has_json and not has_spiece:
        raise UserError(f"{str(folder)!r} holds no tokenizer; expected tokenizer.json or spiece.model in it")
    from transformers import (
        PreTrainedTokenizerFast,
        T5TokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]  an alias
    )

    # transformers 5 rebuilds a T5 tokenizer without the byte fallback; the generic class takes tokenizer.json
    # as is.
    is_ours = has_json and _tokenizer_class(folder) in ("PreTrainedTokenizerFast", "TokenizersBackend")
    cls: Any = PreTrainedTokenizerFast if is_ours else T5TokenizerFast
    try:
        tokenizer = cls.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception on damaged files
        raise UserError(
            f"the tokenizer in {str(folder)!r} cannot be read ({error}); copy it again"
        ) from error
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {str(folder)!r} has no <pad> or no </s>; expected a T5 tokenizer")
    return tokenizer


def _tokenizer_class(folder: Path) -> str:
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return str(config.get("tokenizer_class", ""))
    except (OSError, ValueError, AttributeError):
        return ""
