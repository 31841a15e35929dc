"""Pictures <-> tokens: what every tokenizer does, and which kinds there are. Uses `palette` and what lies under it."""

from nextpixel.tokens.tokenizer import KINDS, Tokenizer, described, picture_size, read_tokenizer, square_side

__all__ = ["KINDS", "Tokenizer", "described", "picture_size", "read_tokenizer", "square_side"]
