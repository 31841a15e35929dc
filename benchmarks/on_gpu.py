#!/usr/bin/env python3
"""All that needs a GPU, stage by stage, in the order of value; each writes its figures as soon as it has them.

    python benchmarks/on_gpu.py --data cifar10.npz --out gpu             # on a GPU: a model, then S, M and L
    python benchmarks/on_gpu.py --data cifar10.npz --out try --quick     # anywhere: the same stages on a tiny model

check     logits of the embedded model and the loss of its compiled step, against those of the CPU
model     trains the 32-pixel model on the pictures of packed_pictures.py for --minutes from its first
          steps on, the last quarter with a falling rate, and leaves its weights in bf16 in OUT/model
modes     whether rows at slots of their own draw what the plain network draws, and how fast (decode_modes.py)
train     steps of each size beside transformers' in the same run, and model FLOPs over the datasheet's bf16 peak
decode    single pixels behind three quarters of a picture at batch 1, 8, 32 and 256, beside transformers
sample    256 whole pictures of S in one batch

Needs torch, numpy, pillow and safetensors, and transformers to compare with. Each batch size has its own file; existing
ones are not measured again, and after a failure the next one begins. OUT/figures.json has all that has been measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packed_pictures import unpack
from torch import Tensor
from torch.nn import functional as F

import nextpixel
from nextpixel import ImageGPT, ImageGPTConfig
from nextpixel.bench import bench, random_model, table
from nextpixel.checkpoints import Run, write_model
from nextpixel.devices import choose_device
from nextpixel.files import new_folder
from nextpixel.hardware import find_hardware
from nextpixel.network import cost as plan
from nextpixel.tokens.palette import Palette

# Images a step beside transformers, which keeps all scores (2, 5 and 10 GB an image in fp32), and of ours alone.
TRAINED_AT = {"s": (32, 128), "m": (16, 64), "l": (4, 32)}
DRAWN_AT = {"s": [1, 8, 32, 256], "m": [1, 8, 32], "l": [1, 8]}  # three caches lie side by side, two of them fp32


def check(device: str, batch: int) -> dict[str, Any]:
    """The largest difference of logits in fp32, and the losses of a step: on the CPU, there, and compiled in bf16."""
    model = nextpixel.load()
    tokens = torch.randint(
        0, model.config.colors, (batch, model.config.tokens), generator=torch.Generator().manual_seed(0)
    )

    def step(network: Callable[[Tensor], Tensor], given: Tensor) -> dict[str, float]:
        model.zero_grad()
        loss = F.cross_entropy(network(given).float().flatten(0, 1), given.flatten())
        loss.backward()
        norms = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
        return {"loss": loss.item(), "gradient_norm": float(torch.stack(norms).norm())}

    expected = model(tokens).detach()
    found = {"cpu": step(model, tokens)}
    model, given = model.to(device), tokens.to(device)
    difference = float((model(given).detach().cpu() - expected).abs().max())
    found["device"] = step(model, given)
    with torch.autocast(device, torch.bfloat16):
        found["device, bf16"] = step(model, given)
        found["device, compiled, bf16"] = step(torch.compile(model), given)
    print(f"largest difference of logits {difference:.3g}; {found}", flush=True)
    return {"largest_difference_of_logits": difference, "steps": found}


def train_model(data: Path, out: Path, shape: list[str], minutes: float) -> dict[str, Any]:
    """Train for so many minutes, three quarters of them at a constant rate; save the weights in bf16."""
    pictures, run, cooled = out / "pictures.npy", out / "run", out / "run-cooled"
    if not pictures.exists():
        np.save(pictures, unpack(data))
    command = [sys.executable, "-m", "nextpixel", "pretrain"]
    begin = [str(pictures), "--preset", "modern", *shape, "--steps", "10000000", "--cooldown-fraction", "0.001"]
    begin += [
        "--warmup-steps",
        "100",
        "--augment",
        "flip",
        "--validation-images",
        "500",
        "--evaluate-every-steps",
        "1000",
    ]
    begin += ["--checkpoint-every-minutes", "1", "--compile", "on", "--seed", "0", "--out", str(run)]
    begin = ["--resume", str(run)] if run.exists() else begin
    training = subprocess.Popen([*command, *begin])
    while training.poll() is None and not (run / "log.jsonl").exists():  # it decodes and compiles
        time.sleep(0.5)
    try:
        training.wait(45 * minutes)
    except subprocess.TimeoutExpired:
        training.send_signal(signal.SIGINT)
    training.wait()
    done = Run(run).steps()[-1]
    falling = -(-done // 3)
    end = ["--steps", str(done + falling), "--cooldown-fraction", str(falling / (done + falling)), "--out", str(cooled)]
    subprocess.run(
        [*command, *(["--resume", str(cooled)] if cooled.exists() else ["--branch", str(run), *end])], check=True
    )
    shutil.rmtree(out / "model", ignore_errors=True)
    with new_folder(out / "model") as part:
        write_model(nextpixel.load(cooled), part, dtype=torch.bfloat16)
    log = Run(cooled).read_log()  # with that of the run it branched from
    return {
        "best": Run(cooled).best(),
        "log": [entry for entry in log if "validation_nats" in entry or "loss" in entry],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    stages = ["check", "model", "modes", "train", "decode", "sample"]
    parser.add_argument("--stages", nargs="+", default=stages, choices=stages)
    parser.add_argument("--sizes", nargs="+", default=["s", "m", "l"], choices=list(TRAINED_AT))
    parser.add_argument("--data", type=Path, help="a file of packed_pictures.py, for the model")
    parser.add_argument("--minutes", type=float, default=6.0, help="of the model's training")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model in the place of each size, small batches")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = choose_device("auto")

    def model_of(size: str) -> ImageGPT:
        model = ImageGPT(ImageGPTConfig(layers=2, width=64, heads=2, side=8)) if args.quick else random_model(size)
        model.palette = Palette.openai()
        return model.to(device).eval()

    def modes(size: str, batch: int) -> dict[str, Any]:
        out = args.out / f"modes-{size}-{batch}.raw.json"
        which = ["--model", "embedded"] if args.quick else ["--size", size]
        script = str(Path(__file__).with_name("decode_modes.py"))
        subprocess.run([sys.executable, script, *which, "--batch", str(batch), "--out", str(out)], check=True)
        return dict(json.loads(out.read_text()))

    def timed(work: str, size: str, batch: int, *, against: bool) -> dict[str, Any]:
        model = model_of(size)
        found = bench(model, [work], [batch], repeats=args.repeats, against=against)
        print(table(found), flush=True)
        return found | ({"utilisation": utilisation(model, found)} if work == "train" else {})

    def utilisation(model: ImageGPT, found: dict[str, Any]) -> dict[str, float]:
        """Model FLOPs of each row over the datasheet's bf16 peak; empty for a device that hardware.py does not know."""
        if device != "cuda":
            return {}
        properties = torch.cuda.get_device_properties(0)
        known = find_hardware(properties.name, properties.total_memory)
        if known is None or known.bf16_flops_per_second is None:
            return {}
        each = plan.flops_per_image(model.config) / known.bf16_flops_per_second
        shares = {f"{row['contender']}, {row['batch']}": row["images_per_second"] * each for row in found["rows"]}
        print("of the peak: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()), flush=True)
        return shares

    def model(size: str, batch: int) -> dict[str, Any]:
        shape = (
            ["--layers", "2", "--width", "32", "--heads", "2"] if args.quick else ["--layers", "8", "--width", "256"]
        )
        return train_model(args.data, args.out, [*shape, "--batch-images", str(batch)], args.minutes)

    jobs: list[tuple[str, str, int, Callable[[str, int], dict[str, Any]]]] = []
    for stage in args.stages:
        if stage == "check":
            jobs.append((stage, "embedded", 16, lambda size, batch: check(device, batch)))
        elif stage == "model" and args.data is not None:
            jobs.append((stage, "own", 16 if args.quick else 128, model))
        for size in args.sizes:
            if stage == "train":
                raced, alone = (1, 2) if args.quick else TRAINED_AT[size]
                jobs.append((stage, size, raced, partial(timed, "train", against=True)))
                jobs.append((stage, size, alone, partial(timed, "train", against=False)))
            elif stage == "sample" and size == "s":
                jobs.append((stage, size, 2 if args.quick else 256, partial(timed, "sample", against=False)))
            elif stage in ("modes", "decode"):
                work: Callable[[str, int], dict[str, Any]] = partial(timed, "decode", against=True)
                work = modes if stage == "modes" else work
                jobs += [(stage, size, batch, work) for batch in ([1, 2] if args.quick else DRAWN_AT[size])]
    failed = False
    for stage, size, batch, work in jobs:
        path = args.out / f"{stage}-{size}-{batch}.json"
        if path.exists():
            continue
        print(f"== {stage} {size}, batch {batch}", flush=True)
        try:
            found = work(size, batch)
        except Exception:
            traceback.print_exc()
            failed = True
            continue
        path.with_suffix(".tmp").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        path.with_suffix(".tmp").replace(path)
        figures = {
            one.stem: json.loads(one.read_text()) for one in args.out.glob("*-*-*.json") if ".raw" not in one.name
        }
        (args.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.exit(failed)


if __name__ == "__main__":
    main()
