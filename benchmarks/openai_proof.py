"""Is a converted checkpoint of openai/image-gpt the same model? Asked of TensorFlow itself, with random weights.

    python3 -m venv /tmp/tf && /tmp/tf/bin/pip install tensorflow-cpu        # a tool of this proof only
    /tmp/tf/bin/python benchmarks/openai_proof.py write proof/ [--small] [--golden tests/golden]
    python benchmarks/openai_proof.py compare proof/

`write` builds the network of 2020 as a TensorFlow 1 graph, saves it with tf.train.Saver and keeps its logits for random
tokens, in fp32 and fp64. `compare` holds them against the checkpoint read by nextpixel, the folder that
`nextpixel convert` writes, and transformers' ImageGPT filled from the same arrays by a map of its own.
`--small` adds the shape of iGPT-S in 32 shards, once with Adam's slots (1.8 GB);
`--golden` writes the bundles of the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """A checkpoint to write and the shape of its network."""

    name: str
    layers: int
    width: int
    heads: int
    side: int
    colors: int
    masked: bool = False
    shards: int = 1
    adam: bool = False
    pictures: int = 3


CASES = [
    Case("autoregressive", layers=2, width=32, heads=4, side=6, colors=20),
    Case("autoregressive-adam-7-shards", layers=3, width=24, heads=2, side=5, colors=13, shards=7, adam=True),
    Case("autoregressive-32-shards", layers=5, width=48, heads=3, side=8, colors=512, shards=32, adam=True),
    Case("one-head", layers=1, width=8, heads=1, side=2, colors=3),
    Case("masked", layers=2, width=32, heads=4, side=6, colors=20, masked=True),
    Case("masked-32-shards", layers=5, width=48, heads=3, side=8, colors=512, masked=True, shards=32, adam=True),
]
SMALL = [
    Case("small-32-shards", 24, 512, 8, 32, 512, shards=32, adam=True, pictures=1),
    Case("small-masked-32-shards", 24, 512, 8, 32, 512, masked=True, shards=32, pictures=1),
]
GOLDEN = [
    Case("openai-autoregressive", layers=2, width=8, heads=2, side=3, colors=6, shards=2, adam=True),
    Case("openai-masked", layers=1, width=8, heads=2, side=3, colors=6, masked=True),
]


def write(case: Case, folder: Path, keep_weights: bool) -> None:
    """<folder>/<name>.{index,data-*}, <name>.npz with inputs and logits, <name>.weights.npz if asked."""
    tf = importlib.import_module("tensorflow").compat.v1
    tf.disable_eager_execution()
    tf.logging.set_verbosity(tf.logging.ERROR)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, case.colors, (case.pictures, case.side**2))
    given: dict[str, Any] = (
        {"tokens": tokens, "masked": rng.random(tokens.shape) < 0.4} if case.masked else {"tokens": tokens}
    )
    session_options = tf.ConfigProto(
        device_count={"CPU": case.shards}, intra_op_parallelism_threads=1, inter_op_parallelism_threads=1
    )
    logits: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    for dtype in ("float32", "float64"):
        with tf.Graph().as_default(), tf.Session(config=session_options) as session:
            feeds, output = graph(tf, case, dtype)
            feed = {feeds[name]: value for name, value in given.items()}
            variables = {variable.op.name: variable for variable in tf.trainable_variables()}
            if dtype == "float32":
                extra = optimiser(tf, feeds, output) if case.adam else None
                session.run(tf.global_variables_initializer())
                for name, variable in variables.items():
                    variable.load(random_weight(rng, name, variable.shape.as_list(), case), session)
                if extra is not None:
                    session.run(extra, feed)
                tf.train.Saver(sharded=case.shards > 1).save(
                    session, str(folder / case.name), write_meta_graph=False, write_state=False
                )
                weights = session.run(variables)
            else:
                for name, variable in variables.items():
                    variable.load(weights[name].astype(np.float64), session)
            logits[dtype] = session.run(output, feed)
    np.savez(folder / f"{case.name}.npz", **given, **logits)
    if keep_weights:
        np.savez(folder / f"{case.name}.weights.npz", **weights)


def graph(tf: Any, case: Case, dtype: str) -> tuple[dict[str, Any], Any]:
    """Chen et al. 2020 as released: placeholders for tokens (B, T) and masked (B, T); logits (B, T, K)."""
    width, heads = case.width, case.heads
    count = 0

    def variable(name: str, *shape: int) -> Any:
        nonlocal count
        count += 1
        with tf.device(f"/cpu:{count % case.shards}"):
            return tf.get_variable(name, shape, getattr(tf, dtype), tf.ones_initializer())

    def norm(x: Any, scope: str) -> Any:
        scale = tf.rsqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + 1e-5)
        return x * scale * variable(f"{scope}/g", width)

    def attention(x: Any, scope: str) -> Any:
        per_head = heads, width // heads, width
        q, k, v = (
            tf.einsum("btd,hed->bhte", x, variable(f"{scope}/{name}_proj", *per_head)) for name in ("q", "k", "v")
        )
        scores = tf.einsum("bhte,bhse->bhts", q, k) * (width // heads) ** -0.5
        if not case.masked:
            seen = tf.constant(np.tri(case.side**2), scores.dtype)
            scores = scores * seen - 1e10 * (1 - seen)
        mixed = tf.einsum("bhts,bhse->bhte", tf.nn.softmax(scores), v)
        return tf.einsum("bhte,hed->btd", mixed, variable(f"{scope}/c_proj", *per_head))

    def mlp(x: Any, scope: str) -> Any:
        x = tf.einsum("btd,df->btf", x, variable(f"{scope}/c_fc/w", width, 4 * width))
        x = x * tf.sigmoid(1.702 * x)
        return tf.einsum("btf,fd->btd", x, variable(f"{scope}/c_proj/w", 4 * width, width))

    tokens = tf.placeholder(tf.int32, [None, case.side**2])
    masked = tf.placeholder(tf.bool, [None, case.side**2])
    with tf.variable_scope("model"):
        wte = variable("wte", case.colors, width)
        h = tf.gather(wte, tokens)
        if case.masked:
            h = h * tf.cast(tf.logical_not(masked), h.dtype)[:, :, None]
        else:
            start = tf.tile(variable("sos", width)[None, None], [tf.shape(tokens)[0], 1, 1])
            h = tf.concat([start, h[:, :-1]], 1)
        h = h + variable("wpe", case.side**2, width)
        for i in range(case.layers):
            h = h + attention(norm(h, f"h{i}/ln_1"), f"h{i}/attn")
            h = h + mlp(norm(h, f"h{i}/ln_2"), f"h{i}/mlp")
        logits = tf.einsum("btd,kd->btk", norm(h, "ln_f"), variable("wtet", case.colors, width))
        if case.adam:
            variable("clf/wclf", 10, width)  # as a program has it that also classifies
    return {"tokens": tokens, "masked": masked}, logits


def optimiser(tf: Any, feeds: dict[str, Any], logits: Any) -> Any:
    """One step of Adam, so that the checkpoint holds its slots, and they are not zero."""
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=feeds["tokens"], logits=logits))
    with tf.device("/cpu:0"):
        return tf.train.AdamOptimizer(1e-3).minimize(loss, tf.train.get_or_create_global_step())


def random_weight(rng: np.random.Generator, name: str, shape: list[int], case: Case) -> np.ndarray:
    """Weights under which every part matters: spread-out gains, attention that attends, logits of a few nats."""
    if name.endswith("/g"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    spread = 0.5 if len(name.split("/")) == 2 else case.width**-0.5  # embeddings and head; matrices
    if name.endswith("wtet"):
        spread = 2 * case.width**-0.5
    return rng.normal(0, spread, shape).astype(np.float32)


def compare(case: Case, folder: Path, work: Path) -> dict[str, Any]:
    """Largest absolute differences of logits, and how large the logits are."""
    import torch

    import nextpixel
    from nextpixel.checkpoints import load_openai
    from nextpixel.checkpoints.tensorflow import Bundle
    from nextpixel.cli import main

    with np.load(folder / f"{case.name}.npz") as arrays:
        expected = {name: torch.from_numpy(arrays[name]) for name in ("float32", "float64")}
        tokens = torch.from_numpy(arrays["tokens"])
        given = [tokens, torch.from_numpy(arrays["masked"])] if case.masked else [tokens]
    with np.load(folder / f"{case.name}.weights.npz") as arrays:
        weights = dict(arrays)
    bundle = Bundle(folder / case.name)
    same = all(np.array_equal(bundle.read(name, array.shape), array) for name, array in weights.items())

    colors = np.random.default_rng(1).uniform(-1, 1, (case.colors, 3)).astype(np.float32)
    palette = work / f"{case.name}.palette.npy"
    np.save(palette, colors)
    converted = work / case.name
    with contextlib.redirect_stdout(sys.stderr):
        if main(["convert", str(folder / case.name), str(converted), "--palette", str(palette)]):
            raise SystemExit(f"{case.name}: could not be converted")
    models: dict[str, Any] = {
        "read": load_openai(folder / case.name, palette=nextpixel.Palette(colors)),
        "converted": nextpixel.load(converted),
    }
    if not case.masked:
        models["transformers"] = transformers_model(case, weights)
    found: dict[str, Any] = {
        "largest_logit": float(expected["float64"].abs().max()),
        "tensors_bit_for_bit": same,
        "tensorflow_fp32_fp64": float((expected["float32"] - expected["float64"]).abs().max()),
    }
    shifted = torch.cat([torch.full_like(tokens[:, :1], case.colors), tokens[:, :-1]], 1)
    for name, model in models.items():
        for dtype in (torch.float32, torch.float64):
            with torch.no_grad():
                logits = model.to(dtype)(shifted).logits if name == "transformers" else model.to(dtype)(*given)
            kind = str(dtype).removeprefix("torch.")
            found[f"{name}_{kind}"] = float((logits - expected[kind]).abs().max())
    return found


def transformers_model(case: Case, weights: dict[str, np.ndarray]) -> Any:
    """transformers' network, filled from TensorFlow's arrays without a line of nextpixel."""
    import torch
    from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling

    width = case.width
    model = ImageGPTForCausalImageModeling(
        ImageGPTConfig(
            n_layer=case.layers,
            n_embd=width,
            n_head=case.heads,
            n_positions=case.side**2,
            vocab_size=case.colors + 1,
        )
    )
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items() if name.endswith("bias")}

    def put(name: str, array: np.ndarray) -> None:
        state[name] = torch.from_numpy(np.ascontiguousarray(array))

    put("transformer.wte.weight", np.concatenate([weights["model/wte"], weights["model/sos"][None]]))
    put("transformer.wpe.weight", weights["model/wpe"])
    put("transformer.ln_f.weight", weights["model/ln_f/g"])
    put("lm_head.weight", weights["model/wtet"])
    for i in range(case.layers):
        theirs, ours = f"model/h{i}", f"transformer.h.{i}"
        for norm in ("ln_1", "ln_2"):
            put(f"{ours}.{norm}.weight", weights[f"{theirs}/{norm}/g"])
        columns = [weights[f"{theirs}/attn/{name}_proj"].reshape(width, width).T for name in "qkv"]
        put(f"{ours}.attn.c_attn.weight", np.concatenate(columns, 1))
        put(f"{ours}.attn.c_proj.weight", weights[f"{theirs}/attn/c_proj"].reshape(width, width))
        put(f"{ours}.mlp.c_fc.weight", weights[f"{theirs}/mlp/c_fc/w"])
        put(f"{ours}.mlp.c_proj.weight", weights[f"{theirs}/mlp/c_proj/w"])
    model.load_state_dict(state, strict=True)
    return model.eval()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("write", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="also the shape of iGPT-S in 32 shards")
    parser.add_argument("--golden", type=Path, help="also write the small bundles of the tests into this folder")
    args = parser.parse_args(argv)
    if args.step == "write":
        args.folder.mkdir(parents=True, exist_ok=True)
        cases = CASES + (SMALL if args.small else [])
        for case in cases:
            write(case, args.folder, keep_weights=True)
            print(f"{args.folder / case.name}: written", file=sys.stderr)
        (args.folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases], indent=2) + "\n")
        for case in GOLDEN if args.golden else []:
            args.golden.mkdir(parents=True, exist_ok=True)
            write(case, args.golden, keep_weights=False)
        return
    import tempfile

    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        for values in json.loads((args.folder / "cases.json").read_text()):
            found = compare(Case(**values), args.folder, Path(work))
            print(json.dumps({"case": values["name"], **found}), flush=True)


if __name__ == "__main__":
    main()
