"""What every kind of training run decides and records before its first step, and restores when it is resumed.

create_run writes the run folder; open_run locks it, joins the processes and finds its images.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nextpixel.checkpoints import Run, load, write_model
from nextpixel.config import Fit, GPTRunConfig, ImageGPTConfig, Levels, ResNetConfig, RunConfig
from nextpixel.data.decoded import Batches, DecodedSet, decode, read_decoded, resized, stored_side
from nextpixel.devices import can_compile, choose_device, choose_dtype, free_memory_bytes, machine, set_threads
from nextpixel.errors import InputError
from nextpixel.files import write_json
from nextpixel.images.sources import MapSource, open_source
from nextpixel.network import cost as plan
from nextpixel.network.model import ImageGPT, cross_entropy, masked_cross_entropy
from nextpixel.progress import is_first, say
from nextpixel.tokens import Tokenizer, picture_size, read_tokenizer, square_side, tokenizer_facts
from nextpixel.training import distributed, optim

COMPILE_FROM_SECONDS = 300  # compiling costs about ten seconds per shape and saves a fifth
CPU_FLOPS_PER_SECOND = 1e11  # rough: it only separates short runs from long ones
PATHS = ("init", "palette", "validation", "probe_data", "cache")  # settings recorded as absolute paths

# tokens (B, T), or squares to encode; hidden tokens (B, T); orientations (B,), see images.orient
TokenBatch = tuple[Tensor, Tensor | None, Tensor | None]
Settings = TypeVar("Settings", bound=GPTRunConfig)
AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


@dataclass(frozen=True)
class Decisions:
    """What "auto" resolved to; decided once, so that a resumed run continues as it started."""

    device: str
    dtype: str
    compile: bool
    threads: int
    micro_batch_images: int
    learning_rate: float
    warmup_steps: int
    fit: Fit
    train_key: str
    validation_key: str
    test_key: str | None = None
    steps: int = 0
    """Total; 0 in runs of versions that did not record it."""
    pixels: Sequence[str] = ()
    """DecodedSet.digest of the training, validation and test sets; empty in runs of earlier versions."""
    levels: Mapping[str, Any] = field(default_factory=dict)
    """The range and bands that were requested; empty where the range is measured on the set."""

    @property
    def requested_levels(self) -> Levels:
        return Levels.of(**self.levels)


@dataclass(frozen=True)
class Placement:
    """The device of a run, how it computes there, and the free memory per process."""

    device: str
    dtype: str
    compile: bool
    micro_batch_images: int
    free_bytes: float


def place(config: GPTRunConfig, shape: ImageGPTConfig, steps: int, optimizer: str = "adam") -> Placement:
    """Resolve "auto" on this machine, for a run of that many steps."""
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    batch, free = config.batch_images, free_bytes(device)
    seconds = steps * batch * plan.flops_per_image(shape) / CPU_FLOPS_PER_SECOND
    compiled = config.compile == "on" or (
        config.compile == "auto" and can_compile(device) and seconds > COMPILE_FROM_SECONDS
    )
    if config.micro_batch_images:
        return Placement(device, dtype, compiled, config.micro_batch_images, free)
    image_bytes = plan.activation_bytes_per_image(
        shape, dtype=dtype, checkpointed=config.checkpoint_activations, compiled=compiled
    )
    own = distributed.local_batch_images(batch)
    chosen = plan.micro_batch_images(own, image_bytes, free, device == "cpu")
    for parts in range(-(-own // chosen), own + 1):  # smaller where weights and optimiser take over half the memory
        placed = Placement(device, dtype, compiled, -(-own // parts), free)
        if expected_memory(config, shape, placed, optimizer).total <= plan.usable_bytes(free):
            return placed
    return Placement(device, dtype, compiled, chosen, free)


def expected_memory(config: GPTRunConfig, shape: ImageGPTConfig, placed: Placement, optimizer: str) -> plan.Memory:
    """Peak memory of one process, by part."""
    return plan.memory(
        shape,
        placed.micro_batch_images,
        dtype=placed.dtype,
        optimizer=optimizer,
        compiled=placed.compile,
        checkpointed=config.checkpoint_activations,
        shards=distributed.world_size() if config.shard else 1,
        on_cpu=placed.device == "cpu",
        accumulating=placed.micro_batch_images < config.batch_images or distributed.world_size() > 1,
    )


def free_bytes(device: str) -> float:
    """Memory available to one process now; the processes of a machine share its main memory."""
    return free_memory_bytes(device) / (1 if device.startswith("cuda") else distributed.local_world_size())


def decide(
    config: GPTRunConfig,
    *,
    shape: ImageGPTConfig,
    steps: int,
    images: int,
    peak_rate: float,
    fit: Fit,
    levels: Levels,
    sets: Sequence[DecodedSet],
    placed: Placement | None = None,
) -> Decisions:
    """Decisions for a run of that many steps over that many training images.

    `peak_rate` is the default of `learning_rate`; `sets` are the training, validation and optional test sets.
    """
    placed = placed or place(config, shape, steps)
    return Decisions(
        device=placed.device,
        dtype=placed.dtype,
        compile=placed.compile,
        threads=set_threads(config.threads),
        micro_batch_images=placed.micro_batch_images,
        learning_rate=config.learning_rate or peak_rate,
        warmup_steps=optim.default_warmup_steps(steps, images, config.batch_images)
        if config.warmup_steps is None
        else config.warmup_steps,
        fit=fit,
        train_key=sets[0].key,
        validation_key=sets[1].key,
        test_key=sets[2].key if len(sets) > 2 else None,
        steps=steps,
        pixels=[found.digest() for found in sets],
        levels=levels.values(),
    )


def create_run(
    out: Path,
    kind: str,
    config: RunConfig,
    decided: Any,
    *,
    shape: ImageGPTConfig | ResNetConfig,
    tokenizer: Tokenizer | None,
    data: Mapping[str, Any],
    sets: Sequence[DecodedSet],
    arrays: Mapping[str, Any] | None = None,
    write_model: Callable[[Path], None] | None = None,
) -> Run:
    """Create the run folder, with its provenance in run.json; `kind` is the verb that resumes it. See Run.create.

    Unreadable pictures of `sets` are listed in unreadable.txt. `decided` is a dataclass of decisions.
    """
    unreadable = [line for decoded in sets for line in decoded.unreadable]
    passed_over = [line for decoded in sets for line in decoded.passed_over]
    facts = {
        "kind": kind,
        "config": asdict(config),
        "decisions": asdict(decided),
        "model": asdict(shape),
        "tokenizer": tokenizer and tokenizer_facts(tokenizer),
        "data": {**data, "unreadable": len(unreadable)},
        "versions": _versions(),
        "machine": machine(decided.device),
        **launch_facts(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    run = Run.create(out, facts, unreadable + passed_over, arrays, write_model)
    if unreadable:
        say(f"{len(unreadable)} pictures cannot be read and are left out: {run.path / 'unreadable.txt'}")
    return run


def launch_facts() -> dict[str, Any]:
    """The command line and the number of processes, for run.json."""
    return {"command": sys.argv[1:], "processes": distributed.world_size()}


def start_once(out: Path, kind: str, config: GPTRunConfig, start: Callable[[], Run]) -> Run:
    """The run that `start` creates in the first process, or that this command started before torchrun restarted it."""
    distributed.join(choose_device(config.device), config.timeout_minutes)
    return distributed.on_first_rank(lambda: _restarted(out, kind, config) or start(), patient=True)


def _restarted(out: Path, kind: str, config: RunConfig) -> Run | None:
    """The run that this command started before torchrun restarted it after a failure (max-restarts)."""
    if not distributed.under_torchrun() or not (out / "run.json").is_file():
        return None
    run = Run(out)
    facts = run.facts()
    requested = {name: value for name, value in asdict(config).items() if name not in PATHS}
    if run.kind != kind or facts.get("command") != sys.argv[1:] or not requested.items() <= facts["config"].items():
        return None
    say(f"{out}: resuming from step {(run.steps() or [0])[-1]:,}")
    return run


@contextmanager
def run_facts(run: Run) -> Iterator[dict[str, Any]]:
    """The contents of run.json; an error in using them becomes an InputError that names the file."""
    facts = run.facts()
    try:
        yield facts
    except (KeyError, TypeError, ValueError) as error:
        name = {"pretrain": "pretraining", "finetune": "fine-tuning", "distill": "distillation"}.get(run.kind, run.kind)
        raise InputError(f"{run.path / 'run.json'}: expected a {name} run, got a problem with {error}") from None


def source_facts(images: Any, split: str | None) -> dict[str, Any]:
    """Where images come from, for run.json."""
    several = list(images) if isinstance(images, list | tuple) else [images]
    path: Any = None
    if several and all(isinstance(item, str | os.PathLike) for item in several):
        path = [absolute(str(item)) for item in several]
    return {
        "source": ", ".join(map(str, several)) if path else type(images).__name__,
        "path": path[0] if path and several[0] is images else path,
        "split": split,
    }


def decode_sets(
    images: Any,
    config: GPTRunConfig,
    side: int,
    fit: Fit,
    levels: Levels,
    split: str | None,
    validation: Any = None,
) -> tuple[DecodedSet, DecodedSet]:
    """The training set at the side that augmentation needs, and a set at the model's side for validation.

    The second has the `validation` images, in the range of the training set, or else the same images as the first.
    Raises InputError for a prepared folder of another side or fit.
    """
    stored = stored_side(side, config.augment)
    source = open_source(images, split)
    if isinstance(source, MapSource):
        source.check(side, fit, stored)
    train = decode(source, stored, cache=config.cache, fit=fit, levels=levels)
    if validation is not None:
        return train, decode(validation, side, cache=config.cache, fit=fit, levels=train.levels)
    if stored == side:
        return train, train
    if isinstance(source, MapSource):
        return train, resized(source, side, fit)
    return train, decode(source, side, cache=config.cache, fit=fit, levels=train.levels)


def find_sets(
    keys: Sequence[str],
    pixels: Sequence[str],
    cache: str | None,
    data: Mapping[str, Any],
    images: Any,
    decode: Callable[[Any], Any],
    argument: str = "data",
) -> tuple[DecodedSet, ...]:
    """The sets of a run: from the cache, else decoded again and verified.

    `decode` makes the sets of those keys from `images`, by default from the path in `data`. `argument` is the one
    that passes these images.
    """
    try:
        return tuple(read_decoded(key, cache) for key in keys)
    except FileNotFoundError:
        pass
    if images is None and data["path"] is None:
        raise InputError(f"this run was started with images in memory; pass them again as `{argument}`")
    if images is None:
        _check_exist(data["path"], argument)
    sets: tuple[DecodedSet, ...] = decode(data["path"] if images is None else images)
    source = data["source"] if images is None else source_facts(images, None)["source"]
    _check_same(sets, keys, pixels, cache, [source] * len(sets))
    return sets


def _check_exist(paths: str | Sequence[str], argument: str) -> None:
    several = [paths] if isinstance(paths, str) else paths
    if gone := [path for path in several if os.path.isabs(path) and not os.path.exists(path)]:
        raise InputError(
            f"{gone[0]}: the images of this run no longer exist; if they were moved, pass their new path as "
            f"`{argument}`"
        )


def _check_same(
    sets: Sequence[DecodedSet], keys: Sequence[str], pixels: Sequence[str], cache: str | None, sources: Sequence[str]
) -> None:
    """Raises InputError unless the sets have those keys, or the same pixels in the same order."""
    for i, (found, key, source) in enumerate(zip(sets, keys, sources, strict=True)):
        with suppress(FileNotFoundError):
            if key in (found.key, found.key_before) or found.digest() == (
                pixels[i] if pixels else read_decoded(key, cache).digest()
            ):
                continue
        raise InputError(
            f"{source}: expected the original images of the run, got others (files were added, removed or changed); "
            "restore them, or start a new run"
        )


def relocate_run(run: Run, settings: Callable[..., Any], images: Any, validation: Any = None) -> Run:
    """The run, with `images` and `validation`, if any, recorded as its new sources; see relocate_images."""
    if images is not None or validation is not None:
        with run_facts(run) as facts:
            device, minutes = facts["decisions"]["device"], facts["config"]["timeout_minutes"]
            place = facts["data"]["path"] if images is None else images
            if validation is not None and facts["config"].get("validation") is None:
                raise InputError(
                    f"{run.path} validates on some of its training images; leave it out", argument="validation"
                )
        distributed.join(choose_device(device), minutes)
        distributed.on_first_rank(
            lambda: relocate_images(run, place, lambda facts: decode_run_images(facts, settings, place), validation),
            patient=True,
        )
    return run


def relocate_images(
    run: Run, images: Any, decode: Callable[[dict[str, Any]], Sequence[DecodedSet]], validation: Any = None
) -> None:
    """Record these images, whose sets `decode(facts)` makes, as the source of a run in run.json.

    `validation` is the new path of its validation images. Raises InputError unless all equal the run's images pixel by
    pixel.
    """
    with run.locked():
        facts = run.facts()
        data, decisions = facts["data"], facts["decisions"]
        names = [name for name in ("train_key", "validation_key") if name in decisions]
        if validation is not None:
            facts["config"]["validation"] = absolute(str(validation))
        sets, source = decode(facts), source_facts(images, data["split"])
        pixels = decisions.get("pixels", [])[: len(sets)]
        sources = [source["source"], facts["config"].get("validation") or source["source"]][: len(sets)]
        _check_same(sets, [decisions[name] for name in names], pixels, facts["config"]["cache"], sources)
        decisions |= dict(zip(names, (found.key for found in sets), strict=True))
        data |= source
        write_json(run.path / "run.json", facts)


def side_of(facts: dict[str, Any]) -> int:
    """Side of the pictures of a run, in pixels."""
    return square_side(picture_size(read_tokenizer(facts["tokenizer"]), ImageGPTConfig(**facts["model"])))


def decode_run_images(
    facts: dict[str, Any], settings: Callable[..., Any], images: Any
) -> tuple[DecodedSet, DecodedSet]:
    """The training and validation sets of these images, decoded as run.json says."""
    decided = Decisions(**facts["decisions"])
    if facts["config"].get("validation"):
        _check_exist(facts["config"]["validation"], "validation")
    return decode_sets(
        images,
        settings(**facts["config"]),
        side_of(facts),
        decided.fit,
        decided.requested_levels,
        facts["data"]["split"],
        facts["config"].get("validation"),
    )


def training_set(model: str | Path | None) -> DecodedSet | None:
    """The training set of the run that `model` is a folder or checkpoint of; None for any other model.

    Raises InputError where the images no longer exist.
    """
    folders = [] if model is None else [Path(model), Path(model).parent]
    run = next((Run(folder) for folder in folders if (folder / "run.json").is_file()), None)
    if run is None or run.kind not in ("pretrain", "finetune"):
        return None
    with run_facts(run) as facts:
        key, cache, data = facts["decisions"]["train_key"], facts["config"]["cache"], facts["data"]
        side = stored_side(side_of(facts), facts["config"]["augment"])
        fit, levels = facts["decisions"]["fit"], Levels.of(data.get("range"), data.get("bands"))
    try:
        return read_decoded(key, cache)
    except FileNotFoundError:
        if data["path"] is None:
            raise InputError("these were in memory") from None
        return decode(data["path"], side, split=data["split"], cache=cache, fit=fit, levels=levels)


@dataclass(frozen=True)
class OpenRun(Generic[Settings]):
    """A run of an Image GPT: the contents of run.json, and its sets."""

    run: Run
    config: Settings
    decided: Decisions
    """With the device of this process."""
    shape: ImageGPTConfig
    tokenizer: Tokenizer
    side: int
    """Side of the pictures, see ImageGPT.side."""
    data: dict[str, Any]
    train_set: DecodedSet
    validation_set: DecodedSet


@contextmanager
def open_run(run: Run, settings: type[Settings], images: Any) -> Iterator[OpenRun[Settings]]:
    """Lock the run, join the other processes, apply the run's decisions to this one, and find its sets.

    Raises InputError where another process has the lock.
    """
    with run_facts(run) as facts:
        config = settings(**facts["config"])
        decided = Decisions(**facts["decisions"])
        shape = ImageGPTConfig(**facts["model"])
        tokenizer = read_tokenizer(facts["tokenizer"], config.cache)
        data = {name: facts["data"][name] for name in ("source", "path", "split")}
    device = distributed.join(choose_device(decided.device), config.timeout_minutes)  # raises if it is gone
    distributed.local_batch_images(config.batch_images)
    set_threads(decided.threads)
    with ExitStack() as held:
        distributed.on_first_rank(lambda: held.enter_context(run.locked()))
        train_set, validation_set = distributed.node_by_node(
            lambda: find_sets(
                (decided.train_key, decided.validation_key),
                decided.pixels[:2],
                config.cache,
                data,
                images,
                lambda found: decode_run_images(facts, settings, found),
            )
        )
        decided = replace(decided, device=device)
        yield OpenRun(run, config, decided, shape, tokenizer, side_of(facts), data, train_set, validation_set)


def training_batches(opened: OpenRun[Any], numbers: NDArray[np.int64]) -> Batches:
    """This process's part of the batches of those training images."""
    return Batches(
        opened.train_set.squares,
        numbers,
        side=opened.side,
        batch_images=opened.config.batch_images,
        augment=opened.config.augment,
        seed=opened.config.seed,
        part=(distributed.rank(), distributed.world_size()),
    )


def place_model(model: ImageGPT, config: GPTRunConfig, decided: Decisions, method: str = "__call__") -> nn.Module:
    """Move the model to its device in train mode, compile its blocks if decided, and wrap it for several processes.

    Calling the result calls that method of the model; see distributed.wrap.
    """
    if not config.shard:  # a sharded model is moved shard by shard
        model.to(decided.device)
    model.train()
    model.checkpoint_activations = config.checkpoint_activations
    if decided.compile:
        for block in model.blocks:
            block.compile()
    blocks = list(model.blocks) if config.shard else None
    network = distributed.wrap(model, method, device=decided.device, shard=blocks, dtype=decided.dtype)
    return network.to(decided.device)


def write_full_model(model: ImageGPT, folder: Path) -> None:
    """write_model for a model that may be sharded; all processes call this, the first one writes."""
    whole = model
    if distributed.is_sharded(model):
        state = distributed.full_state_dict(model)
        if is_first():
            with torch.device("meta"):
                whole = ImageGPT(model.config)
            whole.load_state_dict(state, assign=True)
            whole.tokenizer, whole.fit, whole.facts = model.tokenizer, model.fit, model.facts
            whole.levels, whole.words = model.levels, model.words
    distributed.on_first_rank(lambda: write_model(whole, folder))


@contextmanager
def evaluated_model(model: ImageGPT, run: Run, step: int, device: str) -> Iterator[ImageGPT]:
    """The model in eval mode in one process: itself, or, if it is sharded, its checkpoint of that step."""
    if distributed.is_sharded(model):
        yield load(run.folder(step), device=device)
        return
    model.eval()
    yield model
    model.train()


class TokenBatches:
    """Training batches as tokens, with masks or orientations where the model takes them.

    On a CPU pixels are encoded by `tokens`, which the loop calls in a second thread; elsewhere on the device.
    """

    def __init__(self, batches: Batches, model: ImageGPT, device: str) -> None:
        self.batches, self.tokenizer, self.shape, self.device = batches, model.tokenizer, model.config, device

    def tokens(self, step: int) -> TokenBatch:
        batches, shape = self.batches, self.shape
        squares = batches(step)
        hidden = torch.from_numpy(batches.masks(step, shape.tokens)) if shape.objective == "masked" else None
        orientations = torch.from_numpy(batches.orientations(step)) if shape.orientations > 1 else None
        pixels = self.tokenizer.encode(squares) if self.device == "cpu" else torch.from_numpy(squares)
        return pixels, hidden, orientations

    def to_device(self, batch: TokenBatch) -> TokenBatch:
        pixels, hidden, orientations = (None if one is None else one.to(self.device) for one in batch)
        assert pixels is not None
        return pixels if self.device == "cpu" else self.tokenizer.encode(pixels), hidden, orientations


def pixel_loss(logits: Tensor, tokens: Tensor, hidden: Tensor | None) -> Tensor:
    """The mean generative loss: over all tokens, or, for a masked model, over the hidden ones of each image."""
    if hidden is None:
        return cross_entropy(logits, tokens)
    return masked_cross_entropy(logits, tokens, hidden).mean()


def accumulate(network: nn.Module, loss_of: Callable[[slice], Tensor], images: int, decided: Decisions) -> Tensor:
    """Backward of a batch's mean loss by micro-batches; returns it, detached.

    `loss_of(rows)` is the mean loss of those rows of the batch. Gradients are averaged over processes in the last
    micro-batch only.
    """
    total = torch.zeros((), device=decided.device)
    for start in range(0, images, decided.micro_batch_images):
        rows = slice(start, min(start + decided.micro_batch_images, images))
        with distributed.gradient_sync(network, rows.stop == images):
            loss = loss_of(rows) * ((rows.stop - rows.start) / images)
            loss.backward()
        total += loss.detach()
    return total


def with_absolute_paths(config: AnyConfig) -> AnyConfig:
    """So that the run can be resumed from another folder."""
    given = {name: getattr(config, name, None) for name in PATHS}
    paths: dict[str, Any] = {name: absolute(path) for name, path in given.items() if path}
    if config.cache:  # which may not exist yet
        paths["cache"] = os.path.abspath(config.cache)
    return replace(config, **paths)


def absolute(path: str | None) -> str | None:
    """The absolute path of an existing file or folder; any other name, unchanged."""
    return os.path.abspath(path) if path is not None and os.path.exists(path) else path


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    try:
        found["nextpixel"] = version("nextpixel")
    except PackageNotFoundError:
        found["nextpixel"] = "not installed"
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return found
    return found | ({"commit": commit.stdout.strip()} if commit.returncode == 0 else {})
