"""What files may cost, and models of others: bombs, endless files, pipes, headers that lead back, hostile texts."""

import contextlib
import io
import json
import os
import re
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from models import lively
from PIL import Image
from safetensors.torch import load_file, save_file

import nextpixel
from nextpixel import ImageGPT, ImageGPTConfig, InputError, LinearProbe, Palette
from nextpixel.checkpoints.card import model_card, public
from nextpixel.cli import main
from nextpixel.config import ResNetConfig
from nextpixel.data.labels import labels_from_csv
from nextpixel.errors import MESSAGE_LETTERS, WorkError, clipped, shortened
from nextpixel.files import read_json
from nextpixel.images import UnreadableImage, decode
from nextpixel.images.sources import load_images, open_source
from nextpixel.limits import check_picture, open_arrays, read_bytes
from nextpixel.progress import duration, printable, say
from nextpixel.tokens.patches import Patches

SMALL = Image.fromarray(np.random.default_rng(2).integers(0, 256, (8, 9, 3), np.uint8))


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


@contextlib.contextmanager
def cheap(seconds: float = 2.0, megabytes: float = 200) -> Iterator[None]:
    """The block takes no more time and memory of Python than that."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        assert time.process_time() - start < seconds
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()


# ---- pictures

JPEG = encoded(SMALL, "JPEG")
SCANS = encoded(SMALL, "JPEG", progressive=True)
LAST_SCAN = SCANS[SCANS.rindex(b"\xff\xda") : -2]


def segment(kind: int, content: bytes) -> bytes:
    return b"\xff" + bytes([kind]) + struct.pack(">H", len(content) + 2) + content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (SCANS[:-2] + LAST_SCAN * 60 + b"\xff\xd9", "over 64 scans"),
        (JPEG[:2] + segment(0xFE, b"") * 1_000_000 + JPEG[2:], "over 1,000 segments"),
        (JPEG[:2] + segment(0xE1, b"Exif\0\0" + b"x" * 40) * 100_000 + JPEG[2:], "over 16 EXIF segments"),
        (JPEG[:2] + b"\xff" * 5_000_000 + JPEG[2:], "stray bytes"),
        (JPEG[:2] + b"\0" * 5_000_000 + JPEG[2:], "stray bytes"),
    ],
)
@pytest.mark.parametrize("way", ["bytes", "file"])
def test_a_jpeg_that_is_read_again_and_again_is_refused(content: bytes, said: str, way: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with cheap(), pytest.raises(UnreadableImage, match=said):
        decode(content if way == "bytes" else str(path), "x.jpg")


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"progressive": True, "exif": b"Exif\0\0" + b"x" * 60_000},
        {"icc_profile": b"\xff\xda" * 300_000},
        {"comment": b"\xff\xda" * 30_000},
        {"restart_marker_blocks": 1},
    ],
)
def test_an_honest_jpeg_is_read(options: dict[str, object]) -> None:
    for mode in ("RGB", "L", "CMYK"):
        content = encoded(SMALL.resize((400, 300)).convert(mode), "JPEG", **options)
        check_picture(content)
        assert decode(content + os.urandom(3_000_000), "x").size == (400, 300)  # as cameras append films


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_compressed_texts_of_a_png_stay_small(kind: bytes) -> None:
    png = encoded(SMALL, "PNG")
    flags = b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0"
    bomb = chunk(kind, flags + zlib.compress(b"\0" * 300_000_000))
    with cheap(megabytes=80), contextlib.suppress(UnreadableImage):
        decode(png[:33] + bomb + png[33:], "x.png")


@pytest.mark.parametrize(("kind", "frames"), [("GIF", 3_000), ("PNG", 600), ("TIFF", 300), ("WEBP", 200)])
def test_of_many_frames_the_first_is_read_alone(kind: str, frames: int) -> None:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)) for _ in range(frames)]
    content = encoded(pictures[0], kind, save_all=True, append_images=pictures[1:])
    start = time.process_time()
    assert decode(content, "x").size == (16, 16)
    assert time.process_time() - start < 0.2


def test_a_first_frame_beyond_its_canvas_counts() -> None:
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0" * 6
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\2\x4c\1\0;"
    with cheap(), pytest.raises(UnreadableImage):
        decode(head + frame, "x.gif")


# ---- files without end


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("what", ["pipe", "/dev/zero", "a link to /dev/zero"])
@pytest.mark.parametrize(
    "read",
    [
        lambda path: open_source(path),
        lambda path: open_source([path]),
        lambda path: decode(path, "x"),
        lambda path: read_json(Path(path)),
        lambda path: read_bytes(path),
        lambda path: Palette.read(path),
        lambda path: open_arrays(path).__enter__(),
        lambda path: labels_from_csv(path, ["a.png"]),
    ],
    ids="source list decode json bytes palette arrays labels".split(),
)
def test_a_pipe_or_a_device_is_refused_at_once(
    what: str, read: Callable[[str], object], pipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    path = {"pipe": str(pipe), "a link to /dev/zero": str(tmp_path / "zero.png")}.get(what, what)
    with cheap(), pytest.raises(ValueError, match=r"neither a file nor a folder|not a file|no such file"):
        read(path)


def test_the_command_line_waits_for_no_pipe(pipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["complete", str(pipe)], ["pretrain", "x", "--recipe", f"{pipe}"], ["info", str(pipe)]):
        with cheap():
            assert main(argv) == 2
    assert main(["serve", "--token-file", "/dev/zero"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_long_or_deep_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content in (b'{"a": ' + b"[" * 200_000, b'{"a":' * 200_000, b'{"a": ' + b"9" * 100_000 + b"}", b"\xff\xfe"):
        path.write_bytes(content)
        with cheap(), pytest.raises(InputError, match=r"config\.json"):
            read_json(path)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no place
    with cheap(megabytes=300), pytest.raises(InputError, match="over 67,108,864 bytes"):
        read_json(path)


def test_what_libraries_say_of_a_file_shows_no_advice_and_no_bytes(tmp_path: Path) -> None:
    spaces = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4)}" + b" " * 20_000
    contents = {
        "a.npy": b"\x93NUMPY\x02\0" + len(spaces).to_bytes(4, "little") + spaces + bytes(64),
        "b.npy": b"no array",
        "w.ppm": b"P6\n8 a\n255\n",
        "x.ppm": b"P6\n8 8\n255x\n",
    }
    np.savez(tmp_path / "c.npz", images=np.array([{}], object))
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for path in tmp_path.iterdir():
        for read in (load_images, Palette.read):
            with pytest.raises(InputError) as caught:
                read(path, 8)
            said = str(caught.value)
            assert not re.search(r"allow_pickle|max_header_size|\bb['\"]|trust", said) and path.name in said, said


def test_a_bomb_names_the_limit_that_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UnreadableImage, match="over 40 pixels"):
        decode(encoded(SMALL, "PNG"), "bomb", pixel_limit=40)


# ---- archives and tables


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def header(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": kind, "fortran_order": False, "shape": shape})
    return out.getvalue()


def test_an_npz_file_may_not_ask_for_gigabytes(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as file:
        file.write(header((1100, 1024, 1024)))
        for _ in range(1100):
            file.write(bytes(1 << 20))
    assert bomb.stat().st_size < 3_000_000
    with cheap(), pytest.raises(InputError, match="would become 1,153,433,"):
        open_source(bomb)
    for shape in ((1 << 20, 1 << 20, 3), (1 << 62, 4), (-1, 4, 4), (1 << 70, 1)):
        with cheap(), pytest.raises(InputError, match=r"lies\.npz"):
            open_source(npz(tmp_path / "lies.npz", images=header(shape) + b"\0" * 48))
    honest = npz(tmp_path / "zeros.npz", images=header((1000, 32, 32, 3)) + bytes(1000 * 32 * 32 * 3))
    assert len(open_source(honest)) == 1000  # which is compressed to a thousandth as well


def test_a_table_may_not_ask_for_gigabytes(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "bomb.parquet"
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
    with parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        cells = [{"bytes": bytes(1 << 24) + bytes([number]), "path": None} for number in range(72)]
        writer.write_table(pa.Table.from_pylist([{"image": cell} for cell in cells], schema))
    assert path.stat().st_size < 3_000_000
    source = open_source(path)
    with cheap(), pytest.raises(UnreadableImage, match="would become"):
        source.read(0)


@pytest.mark.parametrize("encoding", ["dictionary", "DELTA_BYTE_ARRAY"])
@pytest.mark.parametrize("column", ["image", "label"])
def test_few_bytes_that_stand_for_many_huge_rows_are_bounded(tmp_path: Path, column: str, encoding: str) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = {"image": [b"x"] * 100, "label": ["a"] * 100} | {column: ["a" * (4 << 20)] * 100}
    kinds = {"image": pa.binary(), "label": pa.string()}
    table = pa.table({name: pa.array(values, kinds[name]) for name, values in rows.items()})
    how = {"use_dictionary": True, "dictionary_pagesize_limit": 1 << 30}
    if encoding != "dictionary":
        how = {"use_dictionary": False, "column_encoding": dict.fromkeys(rows, encoding)}
    path = tmp_path / "bomb.parquet"
    parquet.write_table(table, path, compression="zstd", **how)
    assert path.stat().st_size < 10_000
    if column == "label":
        with (
            cheap(megabytes=300),
            pytest.raises(InputError, match="the column 'label' cannot be read: it becomes over"),
        ):
            open_source(path)
    else:
        source = open_source(path)
        with cheap(), pytest.raises(UnreadableImage, match="rows become over"):
            source.content(0)


def tar(*headers: bytes) -> bytes:
    return b"".join(headers) + b"\0" * 1024


def tar_header(name: str, size: int, kind: bytes = b"0") -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    binary = bytes([255 if size < 0 else 128]) + size.to_bytes(11, "big", signed=True)
    block[124:136] = b"%011o\0" % size if 0 <= size < 1 << 33 else binary
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


PAX = b"14 size=-1024\n".ljust(512, b"\0")


@pytest.mark.parametrize(
    "content",
    [
        tar(tar_header("a.png", 0), tar_header("b.png", -512)),
        tar(tar_header("a.png", 0), tar_header("b.png", -1024)),
        tar(tar_header("a.png", 0), tar_header("x", 14, b"x"), PAX, tar_header("b", 0)),
        tar(tar_header("x", 1 << 40, b"x")),
        tar(tar_header("long", 1 << 33, b"L")),
        tar(tar_header("a.png", 1 << 60)),
        tar(*[tar_header("x", 0, b"x")] * 5_000),
        tar(*[tar_header("l", 0, b"L")] * 5_000),
    ],
)
def test_a_shard_that_leads_back_or_asks_for_gigabytes_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with cheap(), pytest.raises(InputError, match=r"x\.tar"):
        open_source(path)


def test_a_member_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(tar_header("a.png", 3 << 30))
        file.seek(3 << 30, os.SEEK_CUR)
        file.write(b"\0" * 1024)
    source = open_source(path)
    with cheap(), pytest.raises(UnreadableImage, match="over 2,147,483,648 bytes"):
        source.read(0)


# ---- models of others


def change(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    told = json.loads(path.read_text())
    told.get("shape", told).update({key: value for key, value in values.items() if key in told.get("shape", told)})
    told.update({key: value for key, value in values.items() if key not in told.get("shape", told)})
    path.write_text(json.dumps(told))


HUGE = [10**15, 10**400, -(10**15), 2**63, 1e300, float("nan"), "9", None, True, [1], {"a": 1}]


@pytest.mark.parametrize("value", HUGE, ids=lambda value: str(value)[:9])
@pytest.mark.parametrize("key", ["n_head", "n_layer", "n_embd", "n_positions", "vocab_size"])
def test_numbers_beyond_reason_are_refused_at_once(folder: Path, key: str, value: object) -> None:
    change(folder, "config.json", **{key: value})
    with cheap(megabytes=20), pytest.raises(InputError, match=r"config\.json|expected shape") as caught:
        nextpixel.load(folder)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", HUGE, ids=lambda value: str(value)[:9])
@pytest.mark.parametrize("key", ["heads", "layers", "side", "logit_cap", "orientations", "classes", "positions"])
def test_numbers_of_our_own_folders_are_bounded_too(tmp_path: Path, key: str, value: object) -> None:
    model = ImageGPT(ImageGPTConfig(layers=1, width=16, heads=2, side=4, colors=8, positions="rotary"))
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (8, 3)))
    nextpixel.save(model, tmp_path / "model")
    change(tmp_path / "model", "config.json", **{key: value})
    with cheap(megabytes=20), pytest.raises(InputError) as caught:
        nextpixel.load(tmp_path / "model")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["layers", "width", "heads", "side", "colors"])
def test_shapes_have_a_largest_number(name: str) -> None:
    with cheap(), pytest.raises(InputError, match=f"{name}: expected a whole number from 1 to"):
        ImageGPTConfig(**{name: 10**15})
    with cheap(), pytest.raises(InputError, match="from 1 to 1,000"):
        ResNetConfig(blocks=10**15)
    with pytest.raises(InputError, match="try heads 8"):
        ImageGPTConfig(width=512, heads=9)


@pytest.mark.parametrize("key", ["model_type", "architectures", "nextpixel", "shape", "n_inner", "activation_function"])
@pytest.mark.parametrize("value", [[], {}, [1], {"a": []}, 3, "x", None])
def test_values_of_any_type_are_read_or_refused(folder: Path, key: str, value: object) -> None:
    change(folder, "config.json", **{key: value})
    with contextlib.suppress(InputError):
        nextpixel.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight", "lm_head.weight"])
def test_weights_that_are_not_finite_are_refused_by_name(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[3] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=rf"{re.escape(name)}: expected finite numbers, got NaN or infinity in 1 of"):
        nextpixel.load(folder)


def test_a_probe_that_is_not_finite_is_refused(model: ImageGPT, tmp_path: Path) -> None:
    squares = np.random.default_rng(4).integers(0, 256, (12, 4, 4, 3), np.uint8)
    probe = LinearProbe(model, layer=1).fit(squares, ["a", "b", "c"] * 4)
    assert probe.linear_ is not None
    probe.linear_.weight[0, 0] = np.nan
    probe.save(tmp_path / "probe", model_name="embedded")
    with pytest.raises(InputError, match="weight: expected finite numbers"):
        LinearProbe.load(tmp_path / "probe", model)


HOSTILE = 'x|y\n\n# <script>alert("1")</script> [a](javascript:b) ![c](http://d) `e` ***'


def test_a_card_shows_facts_as_text(model: ImageGPT) -> None:
    model.facts = {
        "trained_on": HOSTILE,
        HOSTILE: 3,
        "folder": "/home/ann/secret/photos",
        "in": "the set /mnt/q/w here",
    }
    card = model_card(model, "ann/photos")
    assert "\n# \\<script" not in card and not re.search(r"(?<!\\)[<|`](?=script|y|e)", card)
    assert "ann/secret" not in card and "/mnt" not in card and "the set w here" in card
    rows = [line for line in card.splitlines() if line.startswith("| ") and "alert" in line]
    assert len(rows) == 2 and all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert model_card(model, 'a"\nimport os').count("\nimport os") == 0


def test_the_card_of_a_model_of_patches_sends_nobody_to_transformers() -> None:
    model = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=4, colors=8), torch.float32)
    model.tokenizer = Patches(np.arange(96, dtype=np.uint8).reshape(8, 2, 2, 3))
    card = model_card(model, "ann/photos")
    assert "transformers" not in card and "| pictures | 8 x 8, 8 tokens" in card
    assert repr(model).startswith("ImageGPT(1 layers x 16, 2 heads, 8 x 8 pixels, 8 codes, ")


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("/home/ann/my photos", "my photos"),
        ("~/photos", "photos"),
        (r"C:\Users\ann\photos", "photos"),
        ("a list of /home/ann/x.png and D:\\ann\\y.png", "a list of x.png and y.png"),
        ("ann/photos", "ann/photos"),
        ("https://ann.example/a/b", "https://ann.example/a/b"),
        ("photos/cats and 3/4", "photos/cats and 3/4"),
        ({"a": ["/home/ann/b", 3, None]}, {"a": ["b", 3, None]}),
    ],
)
def test_facts_name_no_folder_of_their_maker(value: object, left: object) -> None:
    assert public(value) == left


def test_what_is_saved_or_served_names_no_folder_of_its_maker(model: ImageGPT, tmp_path: Path) -> None:
    model.facts = {"trained_on": "/home/ann/secret/photos", "steps": 3}
    nextpixel.save(model, tmp_path / "model")
    assert all(b"ann" not in path.read_bytes() for path in (tmp_path / "model").iterdir())
    assert nextpixel.load(tmp_path / "model").facts == {"trained_on": "photos", "steps": 3}
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from nextpixel.config import ServeConfig
    from nextpixel.server.app import create_app

    with TestClient(create_app({"m": model}, ServeConfig(slots=1)), base_url="http://127.0.0.1") as client:
        answer = client.get("/v1/models")
    assert "ann" not in answer.text and answer.json()["models"][0]["trained_on"] == "photos"


# ---- what a terminal is shown

NAME = "\x1b]0;owned\x07\x1b[2Ja\u202eb\x9b31m\x85\r.png"


@pytest.mark.parametrize("kind", [InputError, WorkError, lambda text: UnreadableImage("x", text)])
def test_messages_stay_short_whatever_they_quote(kind: Callable[[str], Exception]) -> None:
    message = str(kind(f"begin {'x' * 30_000} end"))
    assert len(message) == MESSAGE_LETTERS and "begin xxx" in message and message.endswith("xxx end")
    assert clipped("x" * 60, 60) == "x" * 60 and clipped("x" * 61, 60) == "x" * 35 + " ... " + "x" * 20
    assert shortened(10**5000) == "a number of 16,610 bits"


def test_durations_have_no_sixtieth_second_or_minute() -> None:
    assert [duration(seconds) for seconds in (89.4, 119.6, 5399.7, 7199, 86_399, 172_800)] == [
        "89 s", "2 min 0 s", "90 min 0 s", "2 h 0 min", "24 h 0 min", "2.0 days",
    ]  # fmt: skip


def test_lines_of_progress_stay_short(capsys: pytest.CaptureFixture[str]) -> None:
    say("x" * 30_000)
    assert len(capsys.readouterr().err) == MESSAGE_LETTERS + 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{0}\n", r"expected the columns file and label, got \['x+\.\.\.$"),
        ("file,label\n{0},a\n{0},b\n", r"expected one label for 'x+\.\.\., got 'a' and 'b'; keep one row$"),
        ("file,label\na,{0}\na,y\n", r"expected one label for 'a', got 'x+\.\.\. and 'y'; keep one row$"),
        ("file,label\n{0},a\n", r"the column file has 'x+\.\.\.; add rows"),
        ("file,label\n{0}{0}{0}{0},a\n", "got something unreadable: field larger than field limit"),
    ],
)
def test_a_table_with_long_cells(table: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(table.format("x" * 50_000))
    with pytest.raises(InputError, match=message) as raised:
        labels_from_csv(path, ["1.png"])
    assert len(str(raised.value)) < 600


def test_control_characters_are_written_as_escapes() -> None:
    shown = printable(NAME)
    assert shown == "\\x1b]0;owned\\x07\\x1b[2Ja\\u202eb\\x9b31m\\x85\\x0d.png" and shown.isprintable()
    assert printable("naïve 猫 ☃ ▀") == "naïve 猫 ☃ ▀"


def steering(text: str) -> set[str]:
    return {c for c in text if (not c.isprintable() and c != "\n")}


@pytest.mark.parametrize("verb", ["score", "complete", "features", "predict", "info"])
def test_no_name_of_a_file_steers_the_terminal(
    verb: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(12):
        (pictures / f"{number}{NAME}").write_bytes(encoded(SMALL, "PNG"))
    (pictures / f"broken\n{NAME}").write_bytes(b"no picture")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"nextpixel": {"trained_on": NAME}}))
    monkeypatch.chdir(tmp_path)
    argv = {
        "score": ["score", str(pictures), "--model", str(folder)],
        "complete": ["complete", str(pictures), "-n", "1", "--model", str(folder), "--out", "x.png"],
        "features": ["features", str(pictures), "--model", str(folder), "--out", "x.npz"],
        "predict": ["predict", str(pictures / f"1{NAME}"), str(pictures)],
        "info": ["info", str(folder)],
    }[verb]
    main(argv)
    said = capsys.readouterr()
    assert steering(said.out) == steering(said.err) == set()
    assert "\\x1b]0;owned" in said.out + said.err
    main(["complete", str(pictures / f"none{NAME}")])
    assert steering(capsys.readouterr().err) == set()


def test_no_member_of_a_shard_steers_the_terminal(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = tmp_path / "x.tar"
    with tarfile.open(shard, "w") as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}{NAME}")
            info.size = len(content := encoded(SMALL, "PNG"))
            archive.addfile(info, io.BytesIO(content))
    assert main(["score", str(shard), "--model", str(folder)]) == 0
    said = capsys.readouterr()
    assert steering(said.out + said.err) == set() and "\\x1b]0;owned" in said.out
