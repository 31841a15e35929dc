"""Reads hostile files, one line of JSON each: a program for tests/test_trials.py, which watches it.

PYTHONPATH=tests python tests/helpers/hostile_files.py SEED COUNT FOLDER
"""

import io
import json
import random
import shutil
import struct
import sys
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from models import lively
from PIL import Image

import nextpixel
from nextpixel import InputError, LinearProbe, Palette
from nextpixel.checkpoints import load_openai
from nextpixel.checkpoints.runs import Run
from nextpixel.config import read_recipe
from nextpixel.data.labels import labels_from_csv
from nextpixel.errors import MESSAGE_LETTERS, WorkError
from nextpixel.images import UnreadableImage
from nextpixel.images.sources import open_source
from nextpixel.representation.extractors import read_features
from test_limits import JPEG, LAST_SCAN, SCANS, header, segment, tar, tar_header

RIGHT = (InputError, UnreadableImage, WorkError)
NUMBERS = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0", b"\xff" * 8, b"\0\0\0\x80" * 2]
WORDS = [
    b"1" + b"0" * 15,
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"[" * 3000,
    b'"\\ud800"',
    b"{}",
    b"\0",
    b"../../etc/passwd",
]


def read_all(path: Path) -> None:
    source = open_source(str(path))
    for index in range(min(3, len(source))):
        source.image(index, (8, 8), "crop")


def picture(kind: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    frames = [Image.fromarray(np.roll(pixels, i, 0)) for i in range(3)] if options.get("save_all") else []
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options, **({"append_images": frames} if frames else {}))
    return out.getvalue()


def pictures() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text " * 20
    return {
        "a.png": picture("PNG", exif=exif.tobytes()),
        "a.apng": picture("PNG", save_all=True),
        "a.jpg": picture("JPEG", exif=exif.tobytes()),
        "progressive.jpg": picture("JPEG", progressive=True),
        "a.gif": picture("GIF", save_all=True),
        "a.webp": picture("WEBP", lossless=True),
        "lossy.webp": picture("WEBP", save_all=True),
        "a.bmp": picture("BMP"),
        "a.tif": picture("TIFF", save_all=True),
        "deflated.tif": picture("TIFF", compression="tiff_deflate"),
        "lzw.tif": picture("TIFF", compression="tiff_lzw"),
        "a.ico": picture("ICO"),
        "a.ppm": picture("PPM"),
        "a.tga": picture("TGA"),
        "a.jp2": picture("JPEG2000"),
        "a.pcx": picture("PCX"),
        "a.sgi": picture("SGI"),
        "a.dds": picture("DDS"),
        "a.icns": picture("ICNS"),
        "a.avif": picture("AVIF"),
    }


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def shard() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in {"1.png": picture("PNG"), "1.cls": b"3", f"{'é' * 200}.jpg": picture("JPEG")}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def table(compression: str) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    cells = [{"bytes": picture("PNG"), "path": None}] * 3
    parquet.write_table(pa.table({"image": cells, "label": [0, 1, 0]}), out, compression=compression)
    return out.getvalue()


def kinds(folder: Path) -> list[tuple[str, bytes, Path, Callable[[Path], object]]]:
    """(name, whole content, the file's place, how it is read) of every kind of file."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    found: list[tuple[str, bytes, Path, Callable[[Path], object]]] = []

    def add(name: str, content: bytes, read: Callable[[Path], object] = read_all) -> None:
        found.append((name, content, folder / name, read))

    for name, content in pictures().items():
        add(name, content)
    add("a.npy", npy(pixels))
    add("tokens.npy", npy(np.arange(64).reshape(4, 16)))
    add("a.npz", npz(images=pixels, labels=np.arange(5), class_names=np.array(list("abcde"))))
    add("a.tar", shard())
    for compression in ("snappy", "zstd", "none"):
        add(f"{compression}.parquet", table(compression))
    add("palette.npy", npy(np.random.default_rng(0).uniform(-1, 1, (16, 3))), lambda path: Palette.read(path))
    add("features.npz", npz(features=np.ones((3, 4), np.float32), extractor=np.array("x")), read_features)
    add("labels.csv", b"file,label\na.png,cat\nb.png,dog\n", lambda path: labels_from_csv(path, ["a.png", "b.png"]))
    add("recipe.toml", b'size = "s"\nside = 32\nsteps = 10\n', lambda path: read_recipe(str(path)))

    model = lively(nextpixel.ImageGPTConfig(layers=1, width=16, heads=2, side=4, colors=8), torch.float32)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)))
    nextpixel.save(model, folder / "model")
    probe = LinearProbe(model, layer=1).fit(np.resize(pixels, (12, 4, 4, 3)), ["a", "b", "c"] * 4)
    probe.save(folder / "probe", model_name=str(folder / "model"))
    modern = nextpixel.ImageGPT(nextpixel.ImageGPTConfig(layers=1, width=16, heads=2, side=4, colors=8, qk_norm=True))
    modern.palette = model.palette
    nextpixel.save(modern, folder / "modern")
    shutil.copytree(folder / "model", folder / "legacy")
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model" / "model.safetensors"), folder / "legacy" / "pytorch_model.bin")
    (folder / "legacy" / "model.safetensors").unlink()
    nextpixel.pretrain(
        pixels, out=folder / "run", layers=1, width=16, heads=2, side=8, steps=2, batch_images=2,
        evaluate_every_steps=1, checkpoint_every_steps=1, sample_images=0,
    )  # fmt: skip
    loads: dict[str, Callable[[Path], object]] = {
        "model": lambda path: nextpixel.load(path.parent),
        "modern": lambda path: nextpixel.load(path.parent),
        "legacy": lambda path: nextpixel.load(path.parent),
        "probe": lambda path: LinearProbe.load(path.parent, model),
        "run": lambda path: (nextpixel.load(path.parent), Run.open(path.parent).read_log()),
    }
    for name, read in loads.items():
        for path in sorted((folder / name).iterdir()):
            if path.is_file():
                found.append((f"{name}/{path.name}", path.read_bytes(), path, read))
    for path in sorted((Path(__file__).parents[1] / "golden").glob("openai-autoregressive.[id]*")):
        add(path.name, path.read_bytes(), lambda path: load_openai(path, palette=six_colors()))
    return found


def six_colors() -> Palette:
    return Palette(np.linspace(-1, 1, 18).reshape(6, 3))


def mutated(content: bytes, choice: random.Random) -> bytes:
    """Some bytes changed, cut, put in, or put elsewhere."""
    data = bytearray(content)
    for _ in range(choice.randint(1, 4)):
        at, end = sorted(choice.randint(0, len(data)) for _ in range(2))
        end = min(end, at + choice.choice([1, 4, 64, 4096]))
        match choice.randint(0, 7):
            case 0:
                data[at:end] = bytes(choice.randint(0, 255) for _ in range(end - at))
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end] * choice.choice([1, 2, 300])
            case 3:
                number = choice.choice(NUMBERS)
                data[at : at + len(number)] = number
            case 4:
                data[at:end] = choice.choice(WORDS)
            case 5:
                data = data[: max(at, 1)]
            case 6:
                data[at:at] = choice.choice(WORDS)
            case _:
                if data:
                    data[at % len(data)] ^= 1 << choice.randint(0, 7)
    return bytes(data)


def crafted() -> list[tuple[str, bytes]]:
    """Files that are worse than chance makes them."""
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as file:
        file.write(header((1100, 1024, 1024)))
        for _ in range(1100):
            file.write(bytes(1 << 20))
    side = 16_000
    large = io.BytesIO()
    Image.new("L", (side, side)).save(large, "PNG")
    tags = [struct.pack("<HHII", number, 7, 1 << 19, 8) for number in range(65535)]
    return [
        ("bomb.npz", bomb.getvalue()),
        ("claims.npy", header((1 << 40, 32, 32, 3)) + bytes(100)),
        ("negative.npy", header((-1, 32, 32, 3)) + bytes(100)),
        ("back.tar", tar(tar_header("a.png", 0), tar_header("b.png", -512))),
        ("back.tar", tar(tar_header("a.png", 0), tar_header("b.png", -1024))),
        ("long.tar", tar(*[tar_header("x", 0, b"x")] * 5_000)),
        ("long.tar", tar(tar_header("l", 1 << 40, b"L"))),
        ("scans.jpg", SCANS[:-2] + LAST_SCAN * 5_000 + b"\xff\xd9"),
        ("segments.jpg", JPEG[:2] + segment(0xFE, b"") * 500_000 + JPEG[2:]),
        ("exif.jpg", JPEG[:2] + segment(0xE1, b"Exif\0\0" + b"x" * 40) * 50_000 + JPEG[2:]),
        ("stray.jpg", JPEG[:2] + b"\xff" * 3_000_000 + JPEG[2:]),
        ("tags.tif", b"II*\0\x08\0\0\0\xff\xff" + b"".join(tags)),
        ("loop.tif", b"II*\0\x08\0\0\0\1\0\0\1\3\0\1\0\0\0\1\0\0\0\x08\0\0\0"),
        ("large.png", large.getvalue()),
        ("deep.toml", b"a = " + b"[" * 100_000),
    ]


def main(seed: int, count: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    choice, all_kinds = random.Random(seed), kinds(folder)
    extra = [
        (name, content, folder / name, (lambda path: read_recipe(str(path))) if name.endswith("toml") else read_all)
        for name, content in crafted()
    ]
    for _, content, path, _ in all_kinds:
        path.write_bytes(content)
    for _, _, path, read in all_kinds:
        read(path)  # whole ones are read
    print(json.dumps({"kinds": len(all_kinds), "crafted": len(extra)}), flush=True)
    for number in range(count):
        mutate = number >= len(extra)
        name, content, path, read = choice.choice(all_kinds) if mutate else extra[number]
        path.write_bytes(mutated(content, choice) if mutate else content)
        wall, cpu = time.monotonic(), time.process_time()
        try:
            read(path)
            outcome = "read"
        except RIGHT as error:
            outcome = "refused" if len(str(error)) <= MESSAGE_LETTERS else f"a message of {len(str(error))} letters"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"[:300]
            shutil.copy(path, folder / f"kept-{number}-{path.name}")
        line = {"file": name, "number": number, "outcome": outcome}
        line |= {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu, "rss_mb": rss_mb()}
        print(json.dumps(line), flush=True)
        path.write_bytes(content)  # whole again: others in its folder are read beside it


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
