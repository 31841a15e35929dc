"""Pictures <-> tokens: the Tokenizer protocol and its kinds.

May use files, limits and progress.
"""

from nextpixel.tokens.tokenizer import (
    KINDS,
    Tokenizer,
    exact_colours,
    picture_size,
    read_tokenizer,
    tokenizer_facts,
)

__all__ = ["KINDS", "Tokenizer", "exact_colours", "tokenizer_facts", "picture_size", "read_tokenizer"]
