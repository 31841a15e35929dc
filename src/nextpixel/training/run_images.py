"""The images of a run: decoded and recorded when it starts, found again when it is resumed, and relocated."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nextpixel.checkpoints import Run
from nextpixel.checkpoints.models import is_bundled
from nextpixel.config import Fit, GPTRunConfig, ImageGPTConfig, Levels, Size, augmentations, to_size
from nextpixel.data.decoded import DecodedSet, decode, read_decoded, resized, stored_size
from nextpixel.devices import choose_device
from nextpixel.errors import InputError
from nextpixel.files import write_json
from nextpixel.images.sources import MapSource, Source, open_source
from nextpixel.images.sources.shards import is_pattern
from nextpixel.tokens import picture_size
from nextpixel.training import distributed
from nextpixel.training.decisions import Decisions


def source_facts(images: Any, split: str | None) -> dict[str, Any]:
    """The source of images, for run.json."""
    several = list(images) if isinstance(images, list | tuple) else [images]
    path: Any = None
    if several and all(isinstance(item, str | os.PathLike) for item in several):
        path = [absolute(str(item)) for item in several]
    return {
        "source": ", ".join(map(str, several)) if path else type(images).__name__,
        "path": path[0] if path and several[0] is images else path,
        "split": split,
    }


def decode_training_set(source: Source, config: GPTRunConfig, size: Size, fit: Fit, levels: Levels) -> DecodedSet:
    """The training set of a model of pictures of `size`, at the size that augmentation needs.

    Raises InputError for a prepared folder of another size or fit, and for augmentation that does not suit the fit.
    """
    exact, parts = fit == "place", augmentations(config.augment)
    if exact and "crop" in parts:
        raise InputError("expected another augmentation for exact colours, which crop mixes", argument="augment")
    if not exact and (needed := sorted(parts & {"recolour", "shift"})):
        raise InputError(f"{needed[0]} needs exact colours, as of `palette=exact`", argument="augment")
    stored = stored_size(size, config.augment)
    if isinstance(source, MapSource):
        source.check(size, fit, stored)
    return decode(source, stored, cache=config.cache, fit=fit, levels=levels)


def decode_sets(
    images: Any,
    config: GPTRunConfig,
    size: Size,
    fit: Fit,
    levels: Levels,
    split: str | None,
    validation: Any = None,
) -> tuple[DecodedSet, DecodedSet]:
    """The training set, see decode_training_set, and a set at the model's size for validation.

    The second has the `validation` images, in the range of the training set, or else the same images as the first.
    """
    source = open_source(images, split)
    train = decode_training_set(source, config, size, fit, levels)
    if validation is not None:
        return train, decode(validation, size, cache=config.cache, fit=fit, levels=train.levels)
    if stored_size(size, config.augment) == size:
        return train, train
    if isinstance(source, MapSource):
        return train, resized(source, size, fit)
    return train, decode(source, size, cache=config.cache, fit=fit, levels=train.levels)


def find_sets(
    keys: Sequence[str],
    pixels: Sequence[str],
    cache: str | None,
    data: Mapping[str, Any],
    images: Any,
    decode: Callable[[Any], Sequence[DecodedSet]],
    argument: str = "data",
) -> tuple[DecodedSet, ...]:
    """The sets of a run: from the cache, else decoded again and verified.

    `decode` makes the sets of those keys from `images`, by default from the path in `data`. `argument` is the name of
    the argument that takes these images.
    """
    try:
        return tuple(read_decoded(key, cache) for key in keys)
    except FileNotFoundError:
        pass
    sets = tuple(decode(_recorded(data["path"], argument) if images is None else images))
    source = data["source"] if images is None else source_facts(images, None)["source"]
    _check_same(sets, keys, pixels, cache, [source] * len(sets))
    return sets


def find_whole_set(facts: Mapping[str, Any], images: Any) -> DecodedSet:
    """The set of a run that has one, which it divides itself, of a student or a tokenizer; see find_sets."""
    decided, cache = facts["decisions"], facts["config"]["cache"]
    (found,) = find_sets(
        [decided["train_key"]],
        decided.get("pixels", []),
        cache,
        facts["data"],
        images,
        lambda images: [_decode_whole_set(facts, images)],
    )
    return found


def relocate_whole_set(run: Run, images: Any) -> Run:
    """The run, with `images`, if any, recorded as its new source; see relocate_images."""
    if images is not None:
        relocate_images(run, images, lambda facts: [_decode_whole_set(facts, images)])
    return run


def _decode_whole_set(facts: Mapping[str, Any], images: Any) -> DecodedSet:
    decided, config = facts["decisions"], facts["config"]
    size, levels = to_size(facts["model"].get("side") or config["side"]), Levels.of(**decided.get("levels", {}))
    return decode(images, size, split=facts["data"]["split"], cache=config["cache"], fit=decided["fit"], levels=levels)


def _recorded(path: str | Sequence[str] | None, argument: str) -> str | Sequence[str]:
    """The path or paths that a run recorded. Raises InputError for None and where one no longer exists."""
    if path is None:
        raise InputError(f"this run was started with images in memory; pass them again as `{argument}`")
    _check_exist(path, argument)
    return path


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
        with run.checked_facts() as facts:
            device, minutes = facts["decisions"]["device"], facts["config"]["timeout_minutes"]
            path, held = facts["data"]["path"], facts["config"].get("validation")
        if validation is not None and held is None:
            raise InputError(
                f"{run.path} validates on some of its training images; leave it out", argument="validation"
            )
        place = _recorded(path, "data") if images is None else images
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


def size_of(facts: dict[str, Any]) -> Size:
    """Height and width of the pictures of a run, in pixels."""
    return picture_size(facts["tokenizer"].get("patch", (1, 1)), ImageGPTConfig(**facts["model"]))


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
        size_of(facts),
        decided.fit,
        decided.requested_levels,
        facts["data"]["split"],
        facts["config"].get("validation"),
    )


def training_set(model: str | Path | None) -> DecodedSet | None:
    """The training set of the run that `model` is a folder or checkpoint of; None for any other model.

    Raises InputError where the images no longer exist.
    """
    folders = [Path(model), Path(model).parent] if model is not None and Path(model).is_dir() else []
    run = next((Run(folder) for folder in folders if (folder / "run.json").is_file()), None)
    if run is None or run.kind not in ("pretrain", "finetune"):
        return None
    with run.checked_facts() as facts:
        key, cache, data = facts["decisions"]["train_key"], facts["config"]["cache"], facts["data"]
        size = stored_size(size_of(facts), facts["config"]["augment"])
        fit, levels = facts["decisions"]["fit"], Levels.among(data)
    try:
        return read_decoded(key, cache)
    except FileNotFoundError:
        if data["path"] is None:
            raise InputError("its training images were passed in memory") from None
        return decode(data["path"], size, split=data["split"], cache=cache, fit=fit, levels=levels)


def absolute_model(name: str | None) -> str | None:
    """The absolute path of a model's folder; the name of a bundled or a hub model, unchanged."""
    return name if name is not None and is_bundled(name) else absolute(name)


def absolute(path: str | None) -> str | None:
    """The absolute path of an existing file or folder, or of a pattern; any other name, unchanged."""
    exists = path is not None and (os.path.exists(path) or is_pattern(path))
    return os.path.abspath(path) if path is not None and exists else path
