"""The command line. One module a verb; results on stdout, everything else on stderr.

Exit codes: 0 done, 1 the work failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import textwrap
from collections.abc import Sequence

VERBS = {
    "complete": "complete pictures: keep the top rows, draw the rest",
    "sample": "draw pictures from nothing",
    "score": "nats per pixel of each image, and where it surprises",
    "evaluate": "the paper's figures of a model on a set: nats per pixel, accuracy; or how good its drawings are",
    "features": "hidden states of images, averaged over pixels, into a file",
    "probe": "what a linear classifier on the features reaches, beside what it has to beat",
    "predict": "classify new images with a saved probe or a fine-tuned model",
    "finetune": "teach a model classes from labelled images, or resume a run",
    "prepare": "decode images once, in parallel, into a folder that trains without decoding again",
    "pretrain": "train an Image GPT on your images, continue one, or resume a run",
    "distill": "train a small convolutional network to predict a model's features",
    "study": "loss against probe accuracy, over the checkpoints of several runs",
    "serve": "all of it over HTTP, with a page for the browser",
    "plan": "what a run will take: memory, time, price",
    "palette": "fit a palette to your images by k-means",
    "push": "upload a model and its card to the Hugging Face hub",
    "info": "what a model or a run is, and how far it got",
    "bench": "how fast this machine works, beside what it could do at best",
    "convert": "turn OpenAI's TensorFlow checkpoint into a model folder, or a student into ONNX",
}
LONGEST = 400  # letters of an error that nobody expected
SHARED = ("pretrain", "finetune", "features")  # by several processes that torchrun starts


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Nothing heavy is imported before the verb is known."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text
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
    from nextpixel.cli.spelling import spell_error
    from nextpixel.errors import InputError, WorkError

    module = None
    try:
        if os.environ.get("WORLD_SIZE", "1") != "1" and "TORCHELASTIC_RUN_ID" in os.environ and verb not in SHARED:
            raise InputError(f"{verb} works in one process, expected no torchrun; {', '.join(SHARED)} work in many")
        module = importlib.import_module(f"nextpixel.cli.{verb}")
        module.run(rest)
    except SystemExit:  # --help has been printed
        return 0
    except InputError as error:
        return _fail(spell_error(error, module), 2)
    except WorkError as error:
        return _fail(spell_error(error, module), 1)
    except KeyboardInterrupt as error:
        return _fail(spell_error(error, module) or "interrupted", 130)
    except BrokenPipeError:  # whoever read our output has stopped, as head does
        sys.stderr.close()
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1, everywhere=True)
    except ImportError as error:
        return _fail(f"{error}; install what is missing with: pip install {error.name or 'nextpixel'}", 1, True)
    except Exception as error:
        if "--verbose" in rest:
            raise
        said = textwrap.shorten(str(error), LONGEST, placeholder=" ...")  # compilers print pages
        return _fail(f"unexpected {type(error).__name__}: {said} (--verbose shows where)", 1, True)
    return 0


def _fail(sentence: str, code: int, everywhere: bool = False) -> int:
    """Of several processes the first one says it, since bad input is bad for all; what nobody expected, each one."""
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
        "nextpixel COMMAND --help tells its options. First thing to try:\n"
        "  nextpixel complete photo.jpg --show"
    )
