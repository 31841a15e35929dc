"""python -m nextpixel, also under torchrun."""

import sys

from nextpixel.cli import main

if __name__ == "__main__":
    sys.exit(main())
