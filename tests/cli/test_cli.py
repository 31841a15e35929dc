"""The command line from outside: what comes in as arguments, what goes out on stdout, stderr and as files."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import nextpixel
from nextpixel import ImageGPT, ImageGPTConfig, Palette
from nextpixel.checkpoints import Run
from nextpixel.cli import VERBS, main
from nextpixel.data.prepared import Job, prepare
from nextpixel.errors import WorkError

SMALL_RUN = "--layers 1 --width 16 --heads 2 --side 8 --steps 2 --batch-images 2 --sample-images 1 --threads 1"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user may have it: pictures, files that are none, and a model."""
    home = tmp_path_factory.mktemp("originals")
    rng = np.random.default_rng(0)

    def picture(path: str) -> None:
        (home / path).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(home / path)

    for path in ("photo.png", "photo.jpg", "photos/a.png", "photos/b.png", "photos/c.png", "single/a.png"):
        picture(path)
    for name in "abcd":
        picture(f"many/{name}.png")
    for whole, cut in (("photo.png", "cut.png"), ("photo.jpg", "cut.jpg")):
        data = (home / whole).read_bytes()
        (home / cut).write_bytes(data[: len(data) * 9 // 10])
    (home / "text.png").write_text("not a picture")
    Image.new("L", (8, 8)).save(home / "black.png")
    (home / "empty").mkdir()
    (home / "taken").mkdir()
    (home / "taken" / "file").write_text("here already")

    np.save(home / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.save(home / "floats.npy", rng.random((2, 8, 8, 3)))
    np.save(home / "complex.npy", np.zeros((2, 8, 8, 3), complex))
    np.savez(home / "labels.npz", labels=np.arange(2), more=np.arange(2))
    np.save(home / "flat.npy", np.zeros(9, np.float32))
    np.save(home / "many.npy", rng.integers(0, 256, (60, 8, 8, 3), np.uint8))
    for name, width, extra in (("real", 4, {}), ("wider", 5, {}), ("one", 4, {"extractor": np.array("net-1")})):
        np.savez(home / f"{name}.npz", features=rng.random((60, width)), **extra)
    np.savez(home / "two.npz", features=rng.random((60, 4)), extractor=np.array("net-2"))
    np.savez(home / "holes.npz", features=np.full((60, 4), np.nan))
    (home / "text.onnx").write_text("not a network")
    (home / "no.tar").write_bytes(b"not a tar file")
    prepare(home / "photos", home / "prepared", side=8)
    prepare(home / "photos", home / "begun", side=8, job=Job(1, 2))
    (home / "unknown.toml").write_text("stepz = 5\n")
    (home / "zero.toml").write_text("steps = 0\n")
    (home / "broken.toml").write_text("steps =\n")

    model = ImageGPT(ImageGPTConfig(layers=1, width=16, heads=2, side=8, colors=512), seed=1)
    model.head.weight.data.normal_(generator=torch.Generator().manual_seed(2))  # it is zero to begin with
    model.palette = Palette.openai()
    nextpixel.save(model, home / "model")
    return home


@pytest.fixture(scope="module")
def broken(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same with broken models beside it, for commands that must change nothing."""
    home = Path(shutil.copytree(originals, tmp_path_factory.mktemp("broken") / "desk"))

    def copy(name: str) -> Path:
        return Path(shutil.copytree(home / "model", home / name))

    def change(name: str, file: str, **values: object) -> None:
        path = copy(name) / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    (copy("no-config") / "config.json").unlink()
    (copy("no-weights") / "model.safetensors").unlink()
    (copy("no-json") / "config.json").write_text("{")
    (copy("list-json") / "config.json").write_text("[]")
    weights = copy("cut-weights") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    tensors = load_file(home / "model" / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "ln_f" not in k}, copy("no-norm") / "model.safetensors")
    bias = {"transformer.h.0.mlp.c_fc.bias": torch.ones(64)}
    save_file(tensors | bias, copy("biased") / "model.safetensors")
    change("other-type", "config.json", model_type="gpt2")
    change("wide", "config.json", n_embd=32)
    change("deep", "config.json", n_layer=10**9)
    change("odd-heads", "config.json", n_head=3)
    change("worded", "config.json", n_embd="wide")
    change("oblong", "config.json", n_positions=60)
    change("few-colours", "preprocessor_config.json", clusters=[[0.0, 0.0, 0.0]] * 5)
    change("no-colours", "preprocessor_config.json", clusters=None)
    before = contents(home)
    yield home
    assert contents(home) == before


@pytest.fixture(autouse=True)
def desk(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a fresh copy of that folder."""
    folder = Path(shutil.copytree(originals, tmp_path / "desk"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither a network nor an accelerator."""
    threads = torch.get_num_threads()

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("the hub cannot be reached\n(it was asked twice)")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=unreachable))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=unreachable))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield
    torch.set_num_threads(threads)  # --threads holds for the process


def arguments(command: str) -> list[str]:
    """The command as a shell splits it, with the small model where none is named."""
    words = shlex.split(command)
    needs_model = words[0] in ("complete", "sample", "score", "evaluate") and "--model" not in words
    return [*words, *(["--model", "model"] if needs_model else [])]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below, which any write or removal alters."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


# ---- bad input: the command, and what the one sentence must say

BAD = {
    # plans
    "plan --hardware abacus": ["--hardware", "h200", "got 'abacus'"],
    "plan --hardware abacus.json": ["--hardware", "abacus.json does not exist", "bench --work train"],
    "plan --count 0": ["--count", "at least 1, got 0"],
    "plan --images abacus": ["--images", "1.28M", "got 'abacus'"],
    "plan --images 0": ["--images", "at least 1"],
    "probe photos --test photo.png --figure photo.png": ["--figure", "photo.png is one of the inputs"],
    "evaluate many.npy --pictures photo.png --train photos --nearest photo.png": ["--nearest", "one of the inputs"],
    "plan --hourly-rate inf": ["--hourly-rate", "0 or more", "got inf"],
    "plan --hardware v100 --dtype bf16": ["--dtype", "v100 has no bf16"],
    "plan --utilisation 45": ["--utilisation", "above 0 and at most 1, got 45"],
    "plan --size xl --hardware rtx4090": ["GB of memory on each device", "--count"],
    "plan --cooldown-fraction 2": ["--cooldown-fraction", "at most 1, got 2"],
    "plan --device cpu": ["--device", "expected auto or cuda", "got cpu", "pretrain prints the plan"],
    "plan --size xl --batch-images 512 --micro-batch-images 512": ["for 512 images at a time", "--micro-batch-images"],
    "plan --positions sine": ["--positions", "learned, rotary"],
    # pictures
    "score": ["IMAGES", "nextpixel score --help"],
    "complete nope.png": ["nope.png", "no such file", "expected a path"],
    "complete photos/nope.png": ["photos/nope.png", "no such file", "expected a path"],
    "complete photo.png nope.png": ["nope.png", "no such file"],
    "complete empty": ["empty", "holds no image", ".png"],
    "complete text.png": ["text.png", "not a known image format", "repair it or leave it out"],
    "complete cut.png": ["cut.png", "truncated", "repair it or leave it out"],
    "complete cut.jpg": ["cut.jpg", "truncated", "repair it or leave it out"],
    "complete photo.png cut.png": ["cut.png", "repair it or leave it out"],
    "score text.png": ["text.png", "Remove or repair"],
    "score objects.npy": ["objects.npy", "not a .npy file of numbers"],
    "score complex.npy": ["complex.npy", "real numbers", "complex128"],
    "score labels.npz": ["labels.npz", "labels, more", "expected an array 'images'"],
    "score photos --split test": ["photos", "'test'", "leave it out"],
    "score some/set": ["some/set", "hub", "cannot be reached"],
    "score photo.png --report odd.html": ["at least 2 images", "got 1", "--against"],
    "score photos --against nope": ["nope", "no such file"],
    "score many --against many": ["--against", "other images", "got the same"],
    "score photo.png --against photos": ["--against", "at least 4 normal images", "got 3"],
    "score photos --against labels.npz": ["labels.npz", "expected an array 'images'"],
    "score photos --false-alarms 0.01": ["--false-alarms", "requires --against"],
    "score photos --against single --false-alarms 0": ["--false-alarms", "between 0 and 1", "got 0.0"],
    "score photos --against single --false-alarms nan": ["--false-alarms", "between 0 and 1", "got nan"],
    "score photos --against many --false-alarms 0.01": ["--false-alarms: 0.01", "at least 99", "got 2", "--against"],
    "score photos --by pixel_distance": ["--by: requires --report, --out or --against"],
    "score photos --out x.csv --by size": ["--by", "expected one of nats_per_pixel", "'size'"],
    "score photos --against single --seed -1": ["--seed", "0 or more", "got -1"],
    # what is drawn
    "complete photo.png --keep 1.0": ["--keep", "less than 1", "1.0"],
    "complete photo.png --keep -0.1": ["--keep", "from 0", "-0.1"],
    "complete photo.png --keep 0.99": ["--keep", "at least 1 of 8 rows", "0.99"],
    "complete photo.png --keep nan": ["--keep", "fraction", "nan"],
    "complete photo.png --keep abc": ["--keep", "expected a number", "'abc'"],
    "complete photo.png --mask nope.png": ["nope.png", "no such file"],
    "complete photo.png --mask text.png": ["--mask", "text.png", "not a known image format"],
    "complete photo.png --mask cut.png": ["--mask", "cut.png"],
    "complete photo.png --mask empty": ["--mask", "empty", "holds no image"],
    "complete photo.png --mask": ["--mask", "expected a value", "none"],
    "complete photo.png --mask alpha": ["--mask", "expected transparent pixels", "photo.png"],
    "complete photos --mask photos --keep 0.25": ["--keep", "cannot be combined with --mask"],
    "complete photo.png --mask alpha --keep-side left": ["--keep-side", "cannot be combined with --mask"],
    "complete photo.png --mask alpha --box 0,0,2,2": ["--mask", "cannot be combined with --box"],
    "complete photo.png --box 0,0,8,8 --invert-mask": ["--box", "0,0,8,8 covers the whole picture"],
    "complete photo.png --mask black.png --invert-mask": ["--mask", "expected white pixels, which are kept, got none"],
    "complete photo.png --invert-mask": ["--invert-mask: requires --mask or --box"],
    "complete photo.png --mask nowhere.png": ["--mask: no such file or folder: nowhere.png"],
    "complete photo.png --mask none*.png": ["--mask: none*.png: no file has such a name"],
    "convert model out.onnx": ["OUT: expected a new folder, got out.onnx; for an .onnx file use --to"],
    "complete photo.png --particles 16": ["--particles: requires --mask or --box"],
    "score photos --seed 1": ["--seed: requires --against with normal images"],
    "evaluate many.npy --pictures many.npy --top-k 3": ["--top-k: requires --samples"],
    "evaluate many.npy --speed exact": ["--speed: requires --samples"],
    "bench --work train --pixels 4": ["--pixels: requires --work that draws"],
    "probe photos --trials 2": ["--trials: requires --against"],
    "probe photos --epochs 2": ["--epochs: requires --against"],
    "probe photos --repeats 2": ["--repeats: requires --labels-per-class"],
    "finetune photos --out new --test-labels labels.csv": ["--test-labels: requires --test"],
    "pretrain --data photos": ["--data: requires --resume"],
    "tokenizer photos --out new --steps 50": ["--steps: requires --kind learned or --learned-decoder"],
    "complete photo.png --box 0,0,2": ["--box", "LEFT,TOP,RIGHT,BOTTOM", "0,0,2"],
    "complete photo.png --box a,b,c,d": ["--box", "LEFT,TOP,RIGHT,BOTTOM", "a,b,c,d"],
    "complete photo.png --box 0,0,9999,4": ["--box", "within 0,0,", "0,0,9999,4"],
    "complete photo.png --box 2,2,2,3": ["--box", "within 0,0,", "2,2,2,3"],
    "complete photo.png --box 3,0,1,4": ["--box", "within 0,0,", "3,0,1,4"],
    "complete photo.png --box 0,0,2,2,2": ["--box", "LEFT,TOP,RIGHT,BOTTOM", "0,0,2,2,2"],
    "complete photo.png --box=-1,0,2,2": ["--box", "-1,0,2,2"],
    "complete photo.png --box 0.5,0,2,2": ["--box", "LEFT,TOP,RIGHT,BOTTOM", "0.5,0,2,2"],
    "complete photo.png --box 0,0,1,1 --keep-side left": ["--keep-side", "cannot be combined with --box"],
    "complete photo.png --mask alpha --particles -3": ["--particles", "at least 1", "got -3"],
    "complete photo.png --mask photo.png --out photo.png": ["--out", "photo.png is one of the inputs"],
    "complete photo.png --box 0,0,1,1 --particles 0": ["--particles", "at least 1", "got 0"],
    "complete photo.png --box 0,0,1,1 --particles 1000": ["--particles: expected 1 to 256, got 1000"],
    "complete photo.png --box 0,0,1,1 --particles x": ["--particles", "whole number", "'x'"],
    "complete photo.png --box 0,0,1,1 --keep 0.75": ["--keep", "cannot be combined with --box"],
    "complete photo.png --keep": ["--keep", "expected a value", "none"],
    "complete photo.png -n 0": ["-n", "at least 1", "got 0"],
    "complete photo.png -n 1.5": ["-n", "whole number", "'1.5'"],
    "sample -n 0": ["-n", "at least 1", "got 0"],
    "sample -n 100001": ["-n", "at most 100,000", "got 100,001", "--seed"],
    "complete photo.png -n 100001": ["-n", "at most 100,000", "got 100,001"],
    "complete photo.png --split test": ["photo.png", "'test'", "leave it out"],
    "sample --temperature -1": ["--temperature", "0 or more", "-1.0"],
    "sample --temperature nan": ["--temperature", "0 or more", "nan"],
    "sample --top-p 0": ["--top-p", "above 0", "got 0.0"],
    "sample --top-p 1.5": ["--top-p", "at most 1", "got 1.5"],
    "sample --top-k 0": ["--top-k", "at least 1", "got 0"],
    "sample --top-k few": ["--top-k", "whole number", "'few'"],
    "bench --size huge": ["--size", "xxs, xs, s, m, l, xl", "'huge'"],
    "bench --work fly": ["--work", "complete, sample, decode", "'fly'"],
    "bench --batch 0": ["--batch", "from 1", "'0'"],
    "bench --repeats 0": ["--repeats", "at least 1", "got 0"],
    "bench --pixels 0": ["--pixels", "at least 1", "got 0"],
    "bench --against gpt": ["--against", "transformers", "'gpt'"],
    "bench --clock sun": ["--clock", "wall, cpu", "'sun'"],
    "bench --speed fast": ["--speed", "auto, exact", "'fast'"],
    "bench --out x.png": ["--out", ".json", "'x.png'"],
    "bench --size s --model model": ["--size", "--model"],
    "bench --size s --dtype bf16": ["--size", "--dtype"],
    "sample --speed fast": ["--speed", "auto, exact", "'fast'"],
    "sample --seed -1": ["--seed", "0 or more", "got -1"],
    "sample --threads 0": ["--threads", "at least 1", "got 0"],
    "sample --device cuda": ["--device", "cuda is not available", "expected one of cpu"],
    "sample --device gpu": ["--device", "auto, cpu, cuda, mps", "'gpu'"],
    # unknown words
    "complete photo.png --kep 0.5": ["unknown option --kep", "did you mean --keep?"],
    "complete photo.png --kep=0.5": ["unknown option --kep", "did you mean --keep?"],
    "sample --no-show": ["unknown option --no-show", "did you mean --show?"],
    "probe photos --baselines none": ["unknown option --baselines", "did you mean --no-baselines?"],
    "sample --images 3 --modl model": ["unknown option --images", "nextpixel sample --help"],
    "sample --wings": ["unknown option --wings", "nextpixel sample --help"],
    "pretrain photos --out run --widht 3": ["unknown option --widht", "did you mean --width?"],
    "complet photo.png": ["'complet'", "did you mean 'complete'?"],
    "frobnicate": ["'frobnicate'", "complete, sample, vary", "nextpixel --help"],
    "--frobnicate": ["'--frobnicate'", "nextpixel --help"],
    # outputs
    "complete photo.png --out photo.png/x.png": ["--out", "expected a folder, got the file", "photo.png"],
    "complete photo.png --out x.jpg": ["--out", ".png", "'x.jpg'"],
    "complete photo.png --out photo.png": ["--out", "photo.png is one of the inputs", "name another"],
    "complete photos --out photos/../photos/a.png": ["--out", "a.png is one of the inputs", "name another"],
    "complete photo.png --each taken": ["--each", "taken exists already", "name a new folder"],
    "sample --out new/a.png --each new": ["--each", "without other outputs", "new/a.png"],
    "complete photo.png --each photo.png/x": ["--each", "expected a folder, got the file", "photo.png"],
    "sample --out taken": ["--out", ".png", "'taken'"],
    "score photos --report x.txt": ["--report", ".html", "'x.txt'"],
    "score photos --report photo.png/x.html": ["--report", "expected a folder, got the file", "photo.png"],
    "score photos --out x.txt": ["--out", ".csv", "'x.txt'"],
    "score photos --out photo.png/x.csv": ["--out", "expected a folder, got the file", "photo.png"],
    "score photo.png --heatmap taken": ["--heatmap", "taken exists already", "name a new folder"],
    # models
    "sample --model nope": ["--model", "'nope'", "expected a checkpoint folder"],
    "sample --model photos/nope": ["--model", "'photos/nope'", "expected a checkpoint folder"],
    "sample --model photo.png": ["--model", "'photo.png'", "expected a checkpoint folder"],
    "sample --model some/model": ["--model", "'some/model'", "no folder", "cannot be reached"],
    "info model --html page.html": ["--html", "expected a run folder, with a run.json", "'model'"],
    "info nope --html page.html": ["--html", "expected a run folder, with a run.json", "'nope'"],
    "info model --html page.txt": ["--html", ".html", "'page.txt'"],
    "info model --html photo.png/page.html": ["--html", "expected a folder, got the file", "photo.png"],
    "info nope": ["nope", "expected a checkpoint folder"],
    "sample --model no-config": ["no-config/config.json", "no such file", "expected it in a checkpoint"],
    "sample --model no-json": ["no-json/config.json", "expected a readable JSON file"],
    "sample --model list-json": ["list-json/config.json", "expected a JSON object", "list"],
    "sample --model other-type": ["other-type/config.json", "model_type", "expected", "'imagegpt'", "'gpt2'"],
    "sample --model odd-heads": ["odd-heads/config.json", "multiple of heads", "heads 2"],
    "sample --model worded": ["worded/config.json", "width: expected a whole number", "'wide'"],
    "sample --model oblong": ["oblong/config.json", "expected a square number", "60"],
    "sample --model no-weights": ["no-weights", "expected a checkpoint with model.safetensors"],
    "sample --model cut-weights": ["cut-weights/model.safetensors", "expected a safetensors file", "damaged"],
    "sample --model no-norm": ["no-norm", "expected a tensor 'transformer.ln_f.weight'"],
    "sample --model deep": ["deep", "layers: expected a whole number from 1 to 10,000"],
    "sample --model wide": ["wide", "expected shape (513, 32)", "got (513, 16)"],
    "sample --model biased": ["biased", "c_fc.bias", "expected zeros"],
    "sample --model few-colours": ["few-colours/preprocessor_config.json", "expected 512 tokens, got 5"],
    "sample --model no-colours": ["no-colours/preprocessor_config.json", "clusters", "expected"],
    # drawn pictures against real ones
    "evaluate": ["IMAGES", "nextpixel evaluate --help"],
    "evaluate many.npy --samples 19": ["--samples", "20 to 100,000", "got 19"],
    "evaluate many.npy --samples 100001": ["--samples", "20 to 100,000", "got 100,001"],
    "evaluate many.npy --samples few": ["--samples", "whole number", "'few'"],
    "evaluate photos --samples 20": ["at least 40 real images", "got 3", "add some"],
    "evaluate many.npy --samples 20 --references 61": ["--references", "20 to 60", "got 61"],
    "evaluate many.npy --samples 20 --pictures many.npy": ["--pictures", "cannot be combined with --samples"],
    "evaluate many.npy --pictures photos": ["--pictures: expected at least 20 pictures, got 3"],
    "evaluate many.npy --pictures nope": ["nope", "no such file"],
    "evaluate many.npy --extractor untrained": ["--extractor", "requires --samples or --pictures"],
    "evaluate many.npy --temperature 0.5": ["--temperature", "requires --samples"],
    "evaluate many.npy --samples 20 --guidance 1.5": ["--guidance: requires --captions"],
    "evaluate many.npy --pictures many.npy --captions names": ["--captions: cannot be combined with --pictures"],
    "evaluate many.npy --samples 20 --captions names": ["--captions", "trained without captions"],
    "evaluate many.npy --samples 20 --protocol openai": ["--protocol", "cannot be combined with --samples"],
    "evaluate many.npy --samples 20 --extractor nope": ["--extractor", "pixels, untrained, a .onnx file", "'nope'"],
    "evaluate many.npy --samples 20 --extractor nope.onnx": ["--extractor", "nope.onnx", "no such file"],
    "evaluate many.npy --samples 20 --extractor real.npz": ["--extractor", "real.npz", "--pictures drawn.npz"],
    "evaluate many.npy --samples 20 --layer 1": ["--layer: requires an --extractor with layers"],
    "evaluate many.npy --samples 20 --extractor untrained --layer 2": ["--layer", "0 to 1", "got 2"],
    "evaluate many.npy --samples 20 --nearest x.png": ["--nearest", "requires --train"],
    "evaluate many.npy --samples 20 --train photos --nearest x.jpg": ["--nearest", ".png", "'x.jpg'"],
    "evaluate many.npy --samples 20 --train many.npy": ["--train", "other images than IMAGES"],
    "evaluate many.npy --samples 20 --train nope": ["nope", "no such file"],
    "evaluate real.npz --pictures many.npy": ["many.npy", "expected a .npz file with an array 'features'"],
    "evaluate real.npz --pictures wider.npz": ["wider.npz", "4 numbers", "got features (5)", "extract both alike"],
    "evaluate one.npz --pictures two.npz": ["two.npz", "net-1", "got net-2", "extract both alike"],
    "evaluate real.npz --pictures holes.npz": ["holes.npz", "finite numbers", "(60, 4)"],
    "evaluate real.npz --pictures one.npz --extractor untrained": ["--extractor", "features already"],
    "evaluate real.npz --pictures one.npz --train photos": ["--train", "give the pictures"],
    # palettes
    "palette photos --colors 500 --side 8": ["--colors", "expected at most 192", "got 500"],
    "palette photos --colors 1": ["--colors", "2 to 65000", "got 1"],
    "palette photos --colors 4 --side 0": ["--side", "at least 1", "got 0"],
    "palette photos --colors 4 --seed -1": ["--seed", "expected 0", "got -1"],
    "palette photos --colors 4 --slice 4": ["--slice", "place"],
    "palette photos --colors 4 --scale 2": ["--scale", "place"],
    "palette photos --colors 4 --out x.png": ["--out", ".npy", "'x.png'"],
    "palette photos --colors 4 --out photo.png/x.npy": ["--out", "expected a folder, got the file", "photo.png"],
    "palette photo.png --exact --colors 4 --out photo.png": ["--out", "photo.png is one of the inputs", "name another"],
    "palette floats.npy --colors 4 --out floats.npy": ["--out", "floats.npy is one of the inputs", "name another"],
    # serving
    "serve --port 70000": ["--port", "0 to 65535", "got 70000"],
    "serve --slots 0": ["--slots", "at least 1", "got 0"],
    "serve --queue 0": ["--queue", "at least 1", "got 0"],
    "serve --timeout-seconds nan": ["--timeout-seconds", "above 0", "got nan"],
    "serve --max-upload-mb 0": ["--max-upload-mb", "above 0", "got 0"],
    "serve --speed fast": ["--speed", "auto, exact", "'fast'"],
    "serve --token-file nope": ["--token-file", "cannot read nope"],
    "serve --token-file text.png": ["--token-file", "at least 16 characters", "openssl"],
    "serve --allow-origin https://a.example:443 --model nope": ["--allow-origin", "https://a.example,", "default port"],
    "serve --allow-origin a.example --model nope": ["--allow-origin", "https://pixels.example", "'a.example'"],
    "serve --model nope": ["--model", "'nope'", "expected a checkpoint folder"],
    "serve --model /": ["--model", "cannot be served as ''"],
    "serve --model model --model model": ["--model", "two models are named 'model'"],
    "serve --model model --classifier model": ["has no classes", "nextpixel probe"],
    "serve --model model --host nowhere.invalid --port 0": ["--host", "cannot listen on nowhere.invalid"],
    "serve --model model --port 0 --speed exact --slots 1000000000": ["--slots", "GB of memory", "fewer"],
    "serve photo.png": ["photo.png", "nextpixel serve --help"],
    # prepared folders
    "prepare": ["expected images and a new folder", "as in: nextpixel prepare"],
    "prepare photos": ["expected images and a new folder", "as in: nextpixel prepare"],
    "prepare nope out": ["nope", "no such file"],
    "prepare photos taken": ["taken exists already", "name a new folder"],
    "prepare photos photo.png": ["photo.png exists already", "name a new folder"],
    "prepare photos photo.png/out": ["expected a folder, got the file", "photo.png"],
    "prepare photos out --side 0": ["--side", "at least 1", "got 0"],
    "prepare photos out --store-side 31": ["--store-side: expected the side 32, or twice it for random crops, got 31"],
    "prepare photos out --workers 0": ["--workers", "at least 1", "got 0"],
    "prepare photos out --fit stretch": ["--fit", "crop, imagenet, squash", "'stretch'"],
    "prepare photos out --job 0/4": ["--job", "3/16", "got '0/4'"],
    "prepare photos out --job 5/4": ["--job", "3/16", "got '5/4'"],
    "prepare photos out --job three": ["--job", "3/16", "got 'three'"],
    "prepare photos out --split test": ["photos", "'test'", "leave it out"],
    "prepare shards-{0..3}.tar out": ["shards-{0..3}.tar", "no such file: shards-0.tar"],
    "prepare 'shards-*.tar' out": ["shards-*.tar", "no file has such a name"],
    "prepare no.tar out": ["no.tar", "expected a plain .tar file", "unpack"],
    "prepare some/set out": ["some/set", "hub", "cannot be reached"],
    "prepare --merge nope": ["--merge", "nope.parts", "got nope"],
    "prepare --merge taken": ["--merge", "taken.parts", "got taken"],
    "prepare --merge out --side 8": ["--merge", "cannot be combined with", "--side"],
    "prepare photos --merge out": ["--merge", "cannot be combined with", "photos"],
    "pretrain prepared --out run --side 16": ["side 16", "got side 8", "nextpixel prepare", "--side 16 --fit crop"],
    "pretrain prepared --out run --side 8 --augment crop": ["side 16", "got side 8", "--side 8", "--store-side 16"],
    "pretrain prepared --out run --side 8 --fit squash": ["--fit squash", "--fit crop", "--side 8 --fit squash"],
    "pretrain prepared --out run --split train": ["prepared has no splits", "leave it out"],
    "score prepared --fit squash": ["prepared", "--fit squash", "--fit crop"],
    "score begun": ["begun is not finished", "begun.parts", "nextpixel prepare --merge begun"],
    "prepare --merge begun": ["1 of them are not finished: 2/2", "--job"],
    "prepare many begun --side 8": ["begun.parts", "was started from", "remove that folder"],
    # pretraining
    "pretrain photos": ["--out", "as in: nextpixel pretrain"],
    "pretrain --out run": ["images", "as in: nextpixel pretrain"],
    "pretrain nope --out run": ["nope", "no such file"],
    "pretrain single --out run": ["at least 2 images", "got 1", "--validation"],
    "pretrain photos --out taken": ["--out", "taken exists already", "name a new folder"],
    "pretrain photos --out photo.png/run": ["--out", "expected a folder, got the file", "photo.png"],
    "pretrain photos --out run --size tiny": ["--size", "xxs, xs, s, m, l, xl", "'tiny'"],
    "pretrain photos --out run --width 30 --heads 4": ["--width", "heads 4", "got 30", "try heads 3"],
    "pretrain photos --out run --side 0": ["--side", "at least 1", "got 0"],
    "pretrain photos --out run --steps 0": ["--steps", "at least 1", "got 0"],
    "pretrain photos --out run --learning-rate 0": ["--learning-rate", "above 0", "got 0"],
    "pretrain photos --out run --clip-norm nan": ["--clip-norm", "0 or more", "nan"],
    "pretrain photos --out run --validation-fraction 2": ["--validation-fraction", "between 0 and 1", "2.0"],
    "pretrain photos --out run --validation nope": ["nope", "no such file"],
    "pretrain photos --out run --batch-images 4 --micro-batch-images 3": ["--micro-batch-images", "divisor", "got 3"],
    "pretrain photos --out run --palette nope.npy": ["nope.npy", "expected a palette as .npy", "no such file"],
    "pretrain photos --out run --palette flat.npy": ["flat.npy", "expected an array of shape (colours, 3)", "(9,)"],
    "pretrain photos --out run --palette objects.npy": ["objects.npy", "expected a palette as .npy", "unreadable"],
    "pretrain photos --out run --init nope": ["--init: expected a checkpoint folder", "'nope'"],
    "plan --init nope": ["--init: expected a checkpoint folder", "'nope'"],
    "plan --init model --side 16": ["--side", "side 8", "got 16"],
    "pretrain photos --out run --init model --width 32": ["--init", "--width"],
    "pretrain photos --out run --init model --side 16": ["--side", "side 8", "got 16"],
    "pretrain photos --out run --device cuda": ["--device", "cuda is not available", "cpu"],
    "pretrain photos --out run --recipe nope": ["--recipe", "'nope'", "expected the path of a .toml file or one of"],
    "pretrain photos --out run --recipe nope.toml": ["--recipe", "'nope.toml'", "expected the path of a .toml file"],
    "pretrain photos --out run --recipe": ["--recipe", "expected a value", "none"],
    "pretrain photos --out run --recipe unknown.toml": ["unknown.toml", "'stepz'", "did you mean steps?"],
    "pretrain photos --out run --recipe zero.toml": ["zero.toml", "steps: expected at least 1"],
    "pretrain photos --out run --recipe zero.toml --recipe=nope": ["--recipe", "'nope'"],
    "pretrain photos --out run --recipe broken.toml": ["broken.toml", "expected a valid TOML file"],
    "pretrain photos --out run --recipe photo.png": ["--recipe", "'photo.png'", "expected the path of a .toml file"],
    "pretrain photos --out run --size xl --batch-images 65536 --micro-batch-images 65536": [
        "expected to need",
        "GB of memory for 65,536 images at a time",
        "it fits with --",
        "--force",
    ],
    "pretrain photos --out run --tracker comet": ["--tracker", "expected one of wandb, got 'comet'"],
    "pretrain photos --out run --probe-data photos": ["photos", "expected labelled images"],
    "pretrain photos --out run --probe-data nope": ["nope", "no such file"],
    "pretrain photos --out run --probe-images 0": ["--probe-images", "at least 1, got 0"],
    "pretrain photos --out run --probe-every-evaluations 0": ["--probe-every-evaluations", "at least 1, got 0"],
    "pretrain --resume taken --force": ["--resume", "cannot be combined with --force, only with --data, --validation;"],
    "pretrain --branch taken": ["--branch", "expected --out and --steps with it"],
    "pretrain --branch taken --steps 9 --out x": ["--branch: expected a run folder", "'taken'"],
    "pretrain --branch taken --steps 9 --out x --width 8": ["--branch", "combined with --width", "--init"],
    # distillation, peers, students
    "distill": ["--out", "as in: nextpixel distill"],
    "distill photos": ["--out", "as in: nextpixel distill"],
    "distill nope --out run --model model": ["nope", "no such file"],
    "distill photos --out taken --model model": ["--out", "taken exists already", "name a new folder"],
    "distill photos --out photo.png/run --model model": ["--out", "expected a folder, got the file", "photo.png"],
    "distill photos --out run --model nope": ["'nope'", "expected a checkpoint folder"],
    "distill photos --out run --model model --layer best": ["--layer", "middle", "'best'"],
    "distill photos --out run --model model --loss angle": ["--loss", "cosine, squared", "'angle'"],
    "distill photos --out run --model model --shrinkage 2": ["--shrinkage", "at most 1", "2.0"],
    "distill photos --out run --model model --factor 0": ["--factor", "at least 1", "got 0"],
    "distill --resume taken": ["--resume", "expected a run folder", "'taken'"],
    "distill photos --resume taken": ["--resume", "combined with photos"],
    "probe photos --against resnet20 --trials 9": ["--trials", "1 to 5", "got 9"],
    "probe photos --against , --model model": ["--against", "resnet20", "','"],
    "convert nope": ["OUT", "--to"],
    "convert nope --to x.pt": ["--to", ".onnx", "'x.pt'"],
    "convert nope --to x.onnx": ["'nope'", "expected a checkpoint folder"],
    "convert model --to x.onnx": ["--to", "expected a student", "model"],
    # orientations
    "complete photo.png --model model --keep-side left": ["--keep-side: left", "--augment orient"],
    "complete photo.png --model model --keep-side middle": ["--keep-side", "top, right, bottom, left", "'middle'"],
    "pretrain photos --out run --init model --augment orient": ["--augment: orient", "--init"],
    "pretrain photos --out run --objective masked --augment orient": ["--augment", "orient", "masked"],
    "finetune photos --out run --augment orient": ["--augment", "pad or pad-flip", "got orient"],
    "pretrain --resume taken": ["--resume", "expected a run folder", "'taken'"],
    "pretrain --resume nope": ["--resume", "expected a run folder", "'nope'"],
    "pretrain --resume taken --steps 9": ["--resume", "combined with --steps", "--init"],
    "pretrain photos --resume taken": ["--resume", "combined with photos", "--init"],
    # studies
    "study --data photos --out new": ["RUNS", "got nothing", "nextpixel study --help"],
    "study taken model --out new": ["--data", "nextpixel study --help"],
    "study taken --data photos --out new": ["RUNS", "at least two run folders", "got 1"],
    "study taken nope --data photos --out new": ["RUNS", "expected run folders with run.json", "'taken'"],
    "study taken model --data photos --out taken": ["--out", "taken exists already", "name a new folder"],
    "study taken model --data photos --out photo.png/new": ["--out", "expected a folder, got the file", "photo.png"],
    "study taken model --data photos --out new --train-images 1": ["--train-images", "at least 2", "got 1"],
    "study taken model --data photos --out new --test-images 0": ["--test-images", "at least 2", "got 0"],
    "study taken model --data photos --out new --seed -1": ["--seed", "0 to 4294967295", "got -1"],
    "study taken model --data photos --out new --threads 0": ["--threads", "at least 1", "got 0"],
    "study taken model --data photos --out new --dtype fp16": ["--dtype", "fp32, bf16", "'fp16'"],
    "study taken model --data photos --out new --runs 3": ["unknown option --runs", "nextpixel study --help"],
}


class TestBadInput:
    @pytest.fixture
    def desk(self, broken: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """One folder for all of them, not a copy for each: none may change it."""
        monkeypatch.chdir(broken)
        return broken

    @pytest.mark.parametrize(("command", "told"), BAD.items(), ids=BAD)
    def test_ends_in_one_sentence_and_changes_nothing(
        self, command: str, told: list[str], desk: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = stamps(desk)
        code = main(arguments(command))
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == ""
        assert err.startswith("nextpixel: ")
        assert err.count("\n") == 1 and err.endswith("\n")
        assert [words for words in told if words not in err] == [], err
        assert stamps(desk) == before


@pytest.mark.parametrize("columns", ["20", "400"])
def test_complaints_do_not_depend_on_the_width_of_the_terminal(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    main(["sample", "--dev", "cpu"])
    main(["sample", "--device", "gpu"])
    assert capsys.readouterr().err == (
        "nextpixel: unknown option --dev; did you mean --device?\n"
        "nextpixel: --device: expected one of auto, cpu, cuda, mps, got 'gpu'; see nextpixel sample --help\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (WorkError("the disk is full"), 1, "the disk is full"),
        (OSError(13, "Permission denied", "locked.png"), 1, "locked.png: Permission denied"),
        (ImportError("No module named 'rich'", name="rich"), 1, "pip install rich"),
        (RuntimeError("no idea"), 1, "unexpected RuntimeError: no idea (use --verbose for a traceback)"),
        (RuntimeError("a\n" * 2_000), 1, f"unexpected RuntimeError: {'a ' * 198}... (use --verbose for a traceback)"),
        (KeyboardInterrupt("stopped and saved"), 130, "stopped and saved"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_have_their_exit_code_and_one_line(
    error: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("nextpixel.cli.sample.run", fail)
    assert main(["sample"]) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and told in err


# ---- good input


def run(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str]:
    """The lines on stdout and the text on stderr of a command that must succeed."""
    code = main(arguments(command))
    out, err = capsys.readouterr()
    assert code == 0, err
    return out.splitlines(), err


def run_json(command: str, capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads("\n".join(run(command + " --json", capsys)[0]))


def read(path: Path | str) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def test_complete_writes_a_grid_and_prints_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    lines, err = run("complete photo.png -n 2 --out grid.png", capsys)
    assert lines[0].startswith("photo.png: nats per pixel ") and lines[1:] == ["grid.png"]
    assert read("grid.png").ndim == 3
    assert "--seed 1" in err


def test_complete_of_a_folder_tells_of_every_picture(capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = run("complete photos -n 1", capsys)
    assert [line.partition(":")[0] for line in lines] == ["a.png", "b.png", "c.png", "completions.png"]


def test_complete_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    told = run_json("complete photo.png photo.jpg -n 3 --keep 0.25 --seed 5 --show", capsys)
    assert told["out"] == "completions.png" and told["kept_rows"] == 2 and told["seed"] == 5
    assert [picture["file"] for picture in told["pictures"]] == ["photo.png", "photo.jpg"]
    assert [len(picture["nats_per_pixel"]) for picture in told["pictures"]] == [3, 3]


def test_each_writes_every_completion_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    files = run_json("complete photos -n 2 --each all", capsys)["each"]
    assert sorted(Path("all").iterdir()) == [Path(file) for file in files]
    assert [Path(file).stem.partition("_")[2] for file in files] == ["a_0", "a_1", "b_0", "b_1", "c_0", "c_1"]
    assert all(read(file).shape == (8, 8, 3) for file in files)
    assert all(np.array_equal(read(files[i])[:4], read(files[i + 1])[:4]) for i in (0, 2, 4)), "the kept rows"


@pytest.mark.parametrize("verb", ["complete photo.png", "sample"])
def test_show_draws_in_the_terminal(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = run(f"{verb} -n 1 --show", capsys)
    assert lines[0].startswith("\x1b[38;2;") and "▀" in lines[0]
    assert lines[-1].endswith(".png")


def test_sample_writes_a_grid_and_prints_only_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = run("sample -n 3 --temperature 0.9 --top-k 40 --top-p 0.9", capsys)
    assert lines == ["samples.png"]
    read("samples.png")
    assert len(run_json("sample -n 3", capsys)["nats_per_pixel"]) == 3


@pytest.mark.parametrize("verb", ["complete photo.png", "sample"])
def test_the_seed_decides_the_files(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = {}
    for name, seed in [("first", 3), ("again", 3), ("other", 4)]:
        run(f"{verb} -n 1 --seed {seed} --out {name}.png --each {name}", capsys)
        (file,) = Path(name).iterdir()
        drawn[name] = Path(f"{name}.png").read_bytes(), file.read_bytes()
    assert drawn["first"] == drawn["again"]
    assert drawn["first"][0] != drawn["other"][0] and drawn["first"][1] != drawn["other"][1]


def test_score_lists_the_least_likely_first(capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = run("score photos", capsys)
    scores = [float(line.split()[0]) for line in lines[:-1]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(line.split()[1] for line in lines[:-1]) == ["a.png", "b.png", "c.png"]
    assert lines[-1].startswith(f"mean {np.mean(scores):.3f}") and lines[-1].endswith("over 3 images")


def test_score_draws_heat_maps_and_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    told = run_json("score photos --heatmap hot", capsys)
    names = [Path(image["file"]).stem for image in told["images"]]
    assert [Path(file).stem.partition("_")[2] for file in told["heatmaps"]] == names
    height, width, _ = read(told["heatmaps"][0]).shape
    assert width == 2 * height
    values = [image["nats_per_pixel"] for image in told["images"]]
    assert told["mean"] == pytest.approx(np.mean(values)) and told["standard_error"] > 0


def test_score_keeps_its_table_when_heat_maps_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(folder: Path, images: Iterator[np.ndarray], stems: list[str]) -> None:
        assert iter(images) is images  # not all in memory
        raise OSError("no space left on device")

    monkeypatch.setattr("nextpixel.cli.score.write_each", full)
    assert main(["score", "many", "--model", "model", "--out", "many.csv", "--heatmap", "hot"]) == 1
    assert len(Path("many.csv").read_text().splitlines()) == 5 and "no space" in capsys.readouterr().err


def test_score_leaves_out_the_odd_broken_picture_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(8):
        shutil.copy("photo.png", f"photos/more{i}.png")
    shutil.copy("cut.png", "photos/cut.png")
    lines, err = run("score photos", capsys)
    assert len(lines) == 11 + 1 and "left out: " in err and "cut.png" in err


def test_evaluate_compares_drawn_pictures_with_real_ones(capsys: pytest.CaptureFixture[str]) -> None:
    command = "evaluate many.npy --samples 20 --seed 3 --extractor pixels,untrained,model --layer 1"
    told = run_json(command, capsys)
    assert (told["samples"], told["references"], told["seed"]) == (20, 20, 3)
    names = [name for name in told["metrics"] if name.startswith("frechet[")]
    assert names[0] == "frechet[pixels-8]" and len(told["metrics"]) == 6 * len(names) == 18
    assert all(name.endswith(" layer 1]") for name in names[1:])
    assert [name.partition("-")[0] for name in names[1:]] == ["frechet[untrained", "frechet[igpt"]
    for values in told["metrics"].values():
        assert {"value", "floor", "palette"} <= values.keys() and np.isfinite(list(values.values())).all()
    lines, err = run(command, capsys)
    shown = next(line.split() for line in lines if line.startswith("frechet[pixels-8]"))
    assert float(shown[1]) == pytest.approx(told["metrics"]["frechet[pixels-8]"]["value"], rel=1e-3)
    assert "20 pictures and 20 real images by pixels-8, 192 features" in lines[0]
    assert "--extractor model is the evaluated model itself" in err and "frechet[pixels-8] is largely bias" in err


def test_evaluate_judges_the_pictures_that_sample_draws(capsys: pytest.CaptureFixture[str]) -> None:
    run("sample -n 24 --seed 5 --each drawn", capsys)
    drawn = run_json("evaluate many.npy --samples 24 --seed 5", capsys)["metrics"]
    judged = run_json("evaluate many.npy --pictures drawn --seed 5", capsys)["metrics"]
    assert judged.keys() == drawn.keys()
    for name, values in judged.items():
        assert "palette" not in values
        assert [values[key] for key in ("value", "floor")] == [drawn[name][key] for key in ("value", "floor")]


def test_evaluate_finds_copies_of_training_images(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    train = rng.integers(0, 256, (50, 8, 8, 3), np.uint8)
    np.save("train.npy", train)
    np.save("copies.npy", train[30:][::-1])
    command = "evaluate many.npy --pictures copies.npy --train train.npy --extractor untrained"
    told = run_json(command + " --nearest copies.png", capsys)["nearest"]
    assert [by["extractor"].partition("-")[0] for by in told] == ["pixels", "untrained"]
    for by in told:
        assert [row[0] for row in by["indices"]] == list(range(49, 29, -1))
        assert by["median"] == by["ratio"] == 0 and by["real_median"] > 0
    assert read("copies.png").ndim == 3
    lines, _ = run(command, capsys)
    assert "nearest training image [pixels-8]: median distance 0," in "\n".join(lines)
    np.save("others.npy", rng.integers(0, 256, (40, 8, 8, 3), np.uint8))
    others = run_json("evaluate many.npy --pictures others.npy --train train.npy", capsys)["nearest"]
    assert 0.9 < others[0]["ratio"] < 1.1


def test_evaluate_compares_files_of_features(capsys: pytest.CaptureFixture[str]) -> None:
    run("features many.npy --out f.npz --model model", capsys)
    told = run_json("evaluate f.npz --pictures f.npz", capsys)
    (name,) = (name for name in told["metrics"] if name.startswith("precision"))
    assert name.startswith("precision[igpt-") and name.endswith(" layer 0]")
    assert told["metrics"][name]["value"] == 1 and told["references"] == 60
    assert (told["floor"]["samples"], told["floor"]["references"]) == (30, 30)
    frechet = told["metrics"][name.replace("precision", "frechet")]
    assert frechet["value"] == pytest.approx(0, abs=1e-4) and frechet["floor"] > 1e-3
    names = run_json("evaluate real.npz --pictures one.npz", capsys)["metrics"]
    assert "frechet[net-1]" in names, "what one of the files says"


def test_info_tells_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    lines, err = run("info model", capsys)
    assert "  side: 8" in lines and f"palette_sha256: {Palette.openai().hash}" in lines
    assert "nextpixel complete" in err
    assert run_json("info model", capsys)["shape"]["width"] == 16


def test_progress_goes_to_stderr_and_results_to_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextpixel.progress.SILENT_SECONDS", 0.0)
    monkeypatch.setattr("nextpixel.progress.LINE_EVERY_SECONDS", 0.0)
    lines, err = run("sample -n 1 --verbose", capsys)
    assert lines == ["samples.png"] and "drawing: " in err and "pixels/s" in err


def test_a_palette_is_fitted_and_trained_with(capsys: pytest.CaptureFixture[str]) -> None:
    lines, err = run("palette photos --colors 8 --side 8 --out own.npy", capsys)
    assert lines[0].startswith("own.npy: 8 colours, PSNR ") and lines[1:] == ["own.swatch.png"]
    assert "--palette own.npy" in err
    assert len(Palette.read("own.npy")) == 8
    read("own.swatch.png")
    told = run_json("tokenizer photos --kind palette --colors 8 --side 8 --out again.npy", capsys)
    assert np.array_equal(np.load("again.npy"), np.load("own.npy")) and told["psnr_db"] > 0

    lines, err = run(f"pretrain photos --palette own.npy --out run {SMALL_RUN}", capsys)
    assert len(lines) == 1 and lines[0].startswith("run: best validation ")
    assert "nextpixel sample --model run" in err
    assert run_json("info run", capsys)["shape"]["colors"] == 8
    assert run("sample --model run -n 1", capsys)[0] == ["samples.png"]


def test_a_run_tells_how_far_it_got_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    run(f"pretrain photos --out run {SMALL_RUN}", capsys)
    told = run_json("info run", capsys)
    assert (told["run"]["steps"], told["run"]["planned_steps"]) == (2, 2) and told["run"]["best"]["step"] == 2
    assert any(line.strip() == "steps: 2" for line in run("info run", capsys)[0])
    resumed = run_json("pretrain --resume run", capsys)
    assert resumed["run"] == "run" and resumed["config"]["width"] == 16 and resumed["best"] == told["run"]["best"]


def test_flags_go_over_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text("layers = 1\nwidth = 32\nheads = 2\nside = 8\nsteps = 1\nsample_images = 0\n")
    command = "pretrain photos --out run --recipe mine.toml --width 16 --batch-images 2 --threads 1"
    config = run_json(command, capsys)["config"]
    assert (config["layers"], config["width"], config["steps"]) == (1, 16, 1)


def test_the_last_recipe_counts(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text("layers = 1\nwidth = 16\nheads = 2\nside = 8\nsteps = 1\nsample_images = 0\n")
    command = "pretrain photos --out run --recipe zero.toml --recipe mine.toml --batch-images 2 --threads 1"
    assert run_json(command, capsys)["config"]["steps"] == 1


# ---- the next useful command


def hints(err: str) -> list[str]:
    """The commands on stderr: each ends its line."""
    return [f"nextpixel {line.partition(': nextpixel ')[2]}" for line in err.splitlines() if ": nextpixel " in line]


@pytest.fixture
def spaced(desk: Path) -> Path:
    """Names with blanks, a masked model beside the other, and what hints call photo.jpg, new/, normal/, labelled/."""
    shutil.copytree("photos", "my photos")
    shutil.copytree("model", "my model")
    shutil.copytree("photos", "new")
    shutil.copytree("many", "normal")
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            shutil.copytree("photos", f"labelled/{split}/{kind}")
    shutil.copy("photo.png", "labelled/test/cat/other.png")  # a test set that is the training set is refused
    model = ImageGPT(ImageGPTConfig(layers=1, width=16, heads=2, side=8, colors=512, objective="masked"), seed=1)
    model.palette = Palette.openai()
    nextpixel.save(model, "masked")
    return desk


HINTS = {
    "complete 'my photos' -n 1 --model 'my model'": [],
    "sample -n 1 --model 'my model'": ["complete photo.jpg --model 'my model'"],
    "score 'my photos' --model 'my model'": ["score 'my photos' --heatmap surprise/ --model 'my model'"],
    "score 'my photos' --out odd.csv --model 'my model'": [
        "score 'my photos' --against normal/ --report odd.html --model 'my model'"
    ],
    "score 'my photos' --against many --model 'my model'": [
        "score 'my photos' --against many --report odd.html --model 'my model'"
    ],
    "score 'my photos' --against many --report odd.html --model 'my model'": [],
    "evaluate 'my photos' --model 'my model'": ["score 'my photos' --model 'my model'"],
    "evaluate 'my photos' --model masked": ["features 'my photos' --model masked"],
    "evaluate many.npy --samples 20 --seed 3 --temperature 0.9 --model 'my model'": [
        "sample -n 20 --temperature 0.9 --seed 3 --each pictures --model 'my model'"
    ],
    "evaluate many.npy --pictures many.npy --model 'my model'": ["score many.npy --model 'my model'"],
    "evaluate labelled --split test --model model": ["score labelled --split test --model model"],
    "features 'my photos' --model 'my model'": ["probe labelled/ --model 'my model'"],
    "features labelled --model masked": ["probe labelled --model masked"],
    "probe labelled --model 'my model' --no-baselines --out 'my probe'": [
        "predict 'my probe' new/ --out predictions.csv --model 'my model'"
    ],
    "finetune labelled --model model --out 'a run' --epochs 1 --threads 1": [
        "predict 'a run' new/ --out predictions.csv"
    ],
    "info 'my model'": ["complete photo.jpg --model 'my model'"],
    "info masked": ["features photos/ --model masked"],
    "palette 'my photos' --colors 8 --side 8": ["pretrain 'my photos' --palette palette.npy --side 8 --out run"],
    f"pretrain 'my photos' --out 'a run' {SMALL_RUN}": ["sample --model 'a run'"],
    f"pretrain 'my photos' --out 'a run' --objective masked {SMALL_RUN}": ["features 'my photos' --model 'a run'"],
}


@pytest.mark.parametrize(("command", "expected"), HINTS.items(), ids=HINTS)
def test_the_next_useful_command_works(
    command: str, expected: list[str], spaced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = run(command, capsys)
    found = hints(err)
    assert found == [f"nextpixel {hint}" for hint in expected]
    for hint in found:
        verb, *rest = shlex.split(hint)[1:]
        if verb == "pretrain":
            rest += shlex.split(SMALL_RUN.replace("--side 8", ""))
        assert main([verb, *rest]) == 0, capsys.readouterr().err


def test_a_run_without_a_checkpoint_tells_how_to_go_on(spaced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"pretrain photos --out 'a run' {SMALL_RUN}", capsys)
    for folder in Path("a run").glob("step_*"):
        shutil.rmtree(folder)
    assert hints(run("info 'a run'", capsys)[1]) == ["nextpixel pretrain --resume 'a run'"]


# ---- many pictures, broken pictures, splits, odd names


def test_complete_leaves_out_the_odd_broken_picture_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(8):
        shutil.copy("photo.png", f"photos/more{i}.png")
    shutil.copy("cut.png", "photos/cut.png")
    told = run_json("complete photos -n 1 --each all", capsys)
    assert len(told["pictures"]) == len(told["each"]) == 11 and "cut.png" in told["unreadable"][0]
    lines, err = run("complete photos single -n 1", capsys)
    assert len(lines) == 12 + 1 and "left out: " in err and "cut.png" in err


def test_large_grids_show_a_part_and_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nextpixel.cli.common.GRID_AT_MOST", 2)
    monkeypatch.setattr("nextpixel.cli.sample.GRID_AT_MOST", 4)
    lines, err = run("complete photos -n 3 --each all", capsys)
    assert len(lines) == 3 + 2 and lines[-1] == "all" and len(list(Path("all").iterdir())) == 9
    assert "first 2 of 3 pictures; --each" in err and "first 2 of 3 completions; --each" in err
    assert run("complete photos/a.png photos/b.png -n 2 --out small.png", capsys)[1].count("first") == 0
    assert read("completions.png").shape == read("small.png").shape
    assert len(run_json("sample -n 5", capsys)["nats_per_pixel"]) == 5
    assert "first 4 of 5 pictures; --each" in run("sample -n 5", capsys)[1]
    run("sample -n 4 --out four.png", capsys)
    assert np.array_equal(read("samples.png"), read("four.png"))


@pytest.mark.parametrize(
    "command",
    ["complete SET -n 1", "score SET", "evaluate SET", "features SET", "palette SET --colors 8 --side 8",
     f"pretrain SET --out run {SMALL_RUN}"],
)  # fmt: skip
def test_a_split_that_was_not_named_is_told(command: str, spaced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = command.replace("SET", "labelled") + (
        "" if command.startswith(("palette", "pretrain")) else " --model model"
    )
    assert run(command, capsys)[1].count("labelled: train split; not used: test\n") == 1
    for name in ("run", "features.npz"):
        shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink(missing_ok=True)
    assert " split; " not in run(f"{command} --split test", capsys)[1]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text there")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_file_names_need_not_be_text(
    encoding: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy("photo.png", f"photos/{name}")
    for flags in ([], ["--json"]):
        buffer = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer, encoding=encoding))
        assert main(["score", "photos", "--model", "model", *flags]) == 0
        sys.stdout.flush()
        out = buffer.getvalue().decode(encoding)
        assert "caf\\udce9.png" in out
    assert name in [image["file"] for image in json.loads(out)["images"]]
    Path(f"photos/cut {name}").write_bytes(b"no picture")
    for i in range(20):
        shutil.copy("photo.png", f"photos/{i}.png")
    assert main(["features", "photos", "--model", "model", "--out", "f.parquet"]) == 0
    assert "caf\\udce9.png" in pyarrow.parquet.read_table("f.parquet")["file"].to_pylist()
    assert main(["features", "photos", "--model", "model", "--out", "f.npz"]) == 0
    with np.load("f.npz") as arrays:
        assert name in arrays["names"].tolist()
    os.rename("photos", place := os.fsdecode(b"caf\xe9"))
    assert main(["pretrain", place, *SMALL_RUN.split(), "--out", "run"]) == 0
    assert Run("run").facts()["data"]["path"] == os.path.abspath(place)
    assert "cut caf\\udce9.png" in Path("run/unreadable.txt").read_text("utf-8")
    assert main(["pretrain", "--resume", "run"]) == 0


# ---- help, and what starting costs


@pytest.mark.parametrize("asked", [[], ["-h"], ["--help"]])
def test_the_overview_names_every_verb(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(asked) == 0
    out, err = capsys.readouterr()
    assert err == "" and all(f"\n  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_is_for_people(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(f"usage: nextpixel {verb} ")
    assert "None" not in out and "False" not in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nextpixel {nextpixel.__version__}\n"


def test_help_comes_in_half_a_second_and_without_torch() -> None:
    code = "import sys; from nextpixel.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[1] < 0.5


def test_importing_reads_no_environment_and_starts_no_thread() -> None:
    code = """
        import os, sys, threading

        class Closed:
            def __getattribute__(self, name):
                raise AssertionError(f"os.environ was used: {name}")
            __getitem__ = __contains__ = __iter__ = lambda *_: 1 / 0

        os.environ = Closed()
        import nextpixel
        assert threading.active_count() == 1
        assert not {"torch", "numpy", "PIL"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_complete_fills_a_box_and_tells_how_well_the_rest_fits(capsys: pytest.CaptureFixture[str]) -> None:
    told = run_json("complete photo.png photo.jpg -n 2 --box 1,1,3,3 --particles 3", capsys)
    for picture in told["pictures"]:
        assert picture["filled_pixels"] == 4 and picture["particles"] == 3
        assert len(picture["log_evidence"]) == len(picture["ancestors"]) == 2
        assert max(picture["log_evidence"]) < 0 and picture["log_evidence_spread"] >= 0
    _, err = run("complete photo.png --box 1,1,3,3 --invert-mask --verbose --gif drawn.gif", capsys)
    assert "60 of 64 pixels will be filled" in err and "log-evidence" in err and "ancestors left" in err
    assert Path("drawn.gif").is_file()


def test_complete_fills_where_a_mask_is_white(capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.pad(np.full((2, 2), 255, np.uint8), 3)).save("mask.png")
    assert run_json("complete photos --mask mask.png -n 1", capsys)["pictures"][2]["filled_pixels"] == 4


def test_masks_of_unreadable_pictures_are_left_out_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("dozen", "masks"):
        Path(folder).mkdir()
    for i in range(12):
        shutil.copy("cut.png" if i == 4 else "photo.png", f"dozen/{i:02}.png")
        mask = np.repeat([255, 0], [i + 1, 63 - i]).reshape(8, 8).astype(np.uint8)
        Image.fromarray(mask).save(f"masks/{i:02}.png")
    each = [i + 1 for i in range(12) if i != 4]
    for masks, counts in (("masks", each), ("photo.jpg", None), ("masks/02.png", [3] * 11)):
        told = run_json(f"complete dozen --mask {masks} -n 1 --particles 1", capsys)
        assert counts in (None, [one["filled_pixels"] for one in told["pictures"]])
    Path("masks/04.png").unlink()
    told = run_json("complete dozen --mask masks -n 1 --particles 1", capsys)
    assert [one["filled_pixels"] for one in told["pictures"]] == each
