"""The command line: one module per verb. Results go to stdout, everything else to stderr. May use all other rooms.

Exit codes: 0 done, 1 the work failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import os
import sys
import textwrap
from collections.abc import Sequence

VERBS = {
    "complete": "complete pictures: keep the top rows, draw the rest",
    "sample": "draw new pictures",
    "vary": "draw variations of pictures: redraw a part, keep the rest",
    "score": "nats per pixel of each image, the least likely first",
    "evaluate": "evaluate a model on a dataset: nats per pixel, accuracy, or the quality of its samples",
    "features": "write hidden states of images, averaged over pixels, to a file",
    "probe": "accuracy of a linear classifier on the features, with baselines",
    "predict": "classify images with a saved probe or a fine-tuned model",
    "finetune": "fine-tune a model on labelled images, or resume a run",
    "prepare": "decode images once, in parallel, into a folder ready for training",
    "pretrain": "train an Image GPT on your images, continue from a model, or resume a run",
    "distill": "train a small convolutional network to predict a model's features",
    "study": "compare loss with probe accuracy over the checkpoints of several runs",
    "serve": "serve models over HTTP, with a web page",
    "plan": "estimate the memory, time and price of a training run",
    "palette": "fit a palette to your images by k-means",
    "tokenizer": "fit a tokenizer to your images, whose tokens are patches of pixels",
    "push": "upload a model and its card to the Hugging Face hub",
    "info": "describe a model or a run",
    "bench": "measure the speed of a model on this machine",
    "completion": "print a script that completes commands and options in bash, zsh or fish",
    "convert": "convert OpenAI's TensorFlow checkpoint to a model folder, or a student to ONNX",
}
SPIN_COUNT = "1000"  # about as fast as libgomp's 300,000 on an idle machine, see docs/performance.md
LONGEST = 400  # characters of an unexpected error
DISTRIBUTED = (
    "pretrain",
    "finetune",
    "features",
    "score",
    "evaluate",
    "predict",
    "sample",
    "complete",
)  # verbs that run under torchrun


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Imports nothing heavy before the verb is known."""
    if "OMP_WAIT_POLICY" not in os.environ:  # torch's threads spin while they wait, ruinous beside a busy process
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # libgomp reads it when torch is imported
    arguments = list(sys.argv[1:] if argv is None else argv)
    atexit.register(gc.freeze)  # or the last collection walks all of torch, for half a second
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be valid text
    code = 0
    try:
        code = _command(arguments)
        if sys.stdout is not None:  # as it is without one at the start
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # as when piped into head
        _discard_output()
        return code
    except OSError as error:
        _discard_output()
        return _fail(f"the output cannot be written: {error.strerror or error}", 1)


def _discard_output() -> None:
    """What is buffered still would be written at exit, and fail there once more."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _command(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        from nextpixel import __version__

        print(f"nextpixel {__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(VERBS)}; see nextpixel --help"
        return _fail(f"unknown command {verb!r}; {hint}", 2)
    return _run(verb, rest)


def _run(verb: str, rest: list[str]) -> int:
    from nextpixel.cli.spelling import spell, spell_error
    from nextpixel.errors import InputError, WorkError
    from nextpixel.progress import quiet, spelled

    module = None
    try:
        if os.environ.get("WORLD_SIZE", "1") != "1" and "TORCHELASTIC_RUN_ID" in os.environ and verb not in DISTRIBUTED:
            raise InputError(f"{verb} cannot run under torchrun, only {', '.join(DISTRIBUTED)} can; start it without")
        module = importlib.import_module(f"nextpixel.cli.{verb}")
        with spelled(spell), quiet() if "--quiet" in rest else contextlib.nullcontext():
            module.run(rest)
    except SystemExit:  # after --help
        return 0
    except InputError as error:
        return _fail(spell_error(error, module), 2, error.everywhere)
    except WorkError as error:
        return _fail(spell_error(error, module), 1, error.everywhere)
    except KeyboardInterrupt as error:
        return _fail(spell_error(error, module) or "interrupted", 130)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1, everywhere=True)
    except ImportError as error:
        return _fail(f"{error}; install what is missing with: pip install {error.name or 'nextpixel'}", 1, True)
    except Exception as error:
        if "--verbose" in rest:
            raise
        message = textwrap.shorten(str(error), LONGEST, placeholder=" ...")  # compiler errors can be pages long
        return _fail(f"unexpected {type(error).__name__}: {message} (use --verbose for a traceback)", 1, True)
    return 0


def _fail(sentence: str, code: int, everywhere: bool = False) -> int:
    """Print an error, from the first process only or from all (`everywhere`)."""
    from nextpixel.progress import say

    say("nextpixel: " + " ".join(sentence.splitlines()), everywhere)
    return code


def _overview() -> str:
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {verb:<{width}}{what}" for verb, what in VERBS.items())
    return (
        "usage: nextpixel COMMAND ...\n\n"
        "Image GPT: a GPT trained on pixels, which completes and draws pictures.\n\n"
        f"{verbs}\n\n"
        "nextpixel help COMMAND prints its options. To start:\n"
        "  nextpixel complete --show"
    )
