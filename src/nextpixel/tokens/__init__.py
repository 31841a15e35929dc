"""Pictures <-> tokens: the Tokenizer protocol and its kinds.

May use devices, files, limits and progress.
"""

from nextpixel.tokens.tokenizer import (
    KINDS,
    Reconstruction,
    Tokenizer,
    covers_pixels,
    exact_colours,
    fitted_side,
    load_tokenizer,
    picture_size,
    pixels_of,
    read_tokenizer,
    reconstruct,
    reconstruction,
    reconstruction_errors,
    save_tokenizer,
    write_tokenizer,
)
