"""Prompts to embeddings: captions cleaned, tokens, the T5 encoder and its weights."""

from ea_runtime.text.cleaning import clean_caption

__all__ = ["clean_caption"]
