"""Odd images: the table, the p-values, the page and the files of nextpixel score."""

import base64
import csv
import io
import json
import math
import re
import tracemalloc
import typing
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from models import lively
from PIL import Image
from sklearn.metrics import roc_auc_score
from tiny_runs import COLORS, pictures

import nextpixel
from nextpixel import ImageGPT, ImageGPTConfig, InputError, Palette
from nextpixel.cli import main
from nextpixel.cli.score import By
from nextpixel.evaluation.oddness import (
    COLUMNS,
    DEFAULT_COLUMN,
    Measurements,
    Oddness,
    local_nats,
    measure,
    odd_images,
    oriented,
    table,
)
from nextpixel.reports.oddness_page import page
from nextpixel.stats import conformal_p_values

SIDE = 8


@pytest.fixture(scope="module")
def model() -> ImageGPT:
    made = lively(ImageGPTConfig(layers=2, width=16, heads=2, side=SIDE, colors=8)).eval()
    made.palette = Palette(COLORS / 127.5 - 1)
    return made


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def smooth(count: int, seed: int = 0) -> np.ndarray:
    """Gradients of muted colours, of few nats whatever they show."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:SIDE, :SIDE][..., None] / SIDE
    down, across = rng.uniform(-60, 60, (2, count, 1, 1, 3))
    return (128 + down * y + across * x).astype(np.uint8)


def stripes(count: int, seed: int = 0) -> np.ndarray:
    """Columns of two colours, two pixels wide."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 1, 2, 3))
    return np.repeat(np.tile(colours, (1, SIDE, SIDE // 4, 1)), 2, 2).astype(np.uint8)


# ---- which column comes first


STRANGERS = {
    "simple among busy": (noise, smooth),
    "striped among busy": (noise, stripes),
    "busy among simple": (smooth, noise),
    "busy among striped": (stripes, noise),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_strangers_come_first_by_default_whatever_kind_they_are(model: ImageGPT, kind: str) -> None:
    """18 normal pictures and 20 strangers: a fixed column fails on some kind, as likelihood does on simple ones."""
    normal, strange = STRANGERS[kind]
    images = np.concatenate([normal(18, 0), strange(20, 1)])
    odd = odd_images(model, images, against=normal(60, 2))
    strangers = np.arange(38) >= 18
    areas = {name: roc_auc_score(strangers, oriented(name, values)) for name, values in odd.values.items()}
    assert areas[odd.clearest] > 0.95, areas
    assert np.array_equal(odd.order(), odd.order(odd.clearest)) and strangers[odd.order()[:15]].all()
    if kind == "simple among busy":
        assert areas["nats_per_pixel"] < 0.5, "what would have misled"


def test_without_a_clear_difference_the_advised_column_comes_first(model: ImageGPT) -> None:
    alike = [odd_images(model, noise(30, seed), against=noise(60, seed + 100)).clearest for seed in range(5)]
    assert alike == [DEFAULT_COLUMN] * 5
    alone = odd_images(model, noise(10))
    assert alone.clearest == DEFAULT_COLUMN and np.array_equal(alone.order(), alone.order(DEFAULT_COLUMN))


def test_the_clearest_column_depends_on_no_order() -> None:
    rng = np.random.default_rng(0)
    for column in COLUMNS:
        calibration = {name: rng.normal(size=40) for name in COLUMNS}
        values = {name: rng.normal(size=20) for name in COLUMNS}
        values[column] = oriented(column, rng.normal(size=20) + 3)
        for names in (list(COLUMNS), list(COLUMNS)[::-1]):
            parts = ({name: part[name] for name in names} for part in (values, calibration))
            shown, normal = parts
            assert Oddness(["x"] * 20, shown, {}, normal, noise(20), []).clearest == column


# ---- p-values


def test_p_values_by_hand() -> None:
    calibration = np.array([3.0, 1.0, 2.0, 2.0])
    scores = np.array([0.0, 1.0, 2.0, 2.5, 3.0, 9.0])
    assert conformal_p_values(scores, calibration) == pytest.approx([1, 1, 0.8, 0.4, 0.4, 0.2])


def test_p_values_are_uniform_on_exchangeable_scores_and_never_0() -> None:
    rng = np.random.default_rng(0)
    n, repeats = 19, 4000
    p = np.array([conformal_p_values(s[:1], s[1:])[0] for s in rng.standard_normal((repeats, n + 1))])
    shares = np.bincount(np.rint(p * (n + 1)).astype(int), minlength=n + 2)[1:] / repeats
    assert p.min() == 1 / (n + 1) and p.max() == 1
    assert np.abs(shares - 1 / (n + 1)).max() < 4 * math.sqrt(0.05 * 0.95 / repeats)


def test_normal_images_pass_the_threshold_as_seldom_as_promised(model: ImageGPT) -> None:
    odd = odd_images(model, noise(200, seed=1), against=noise(120, seed=2), seed=3)
    assert all(p.shape == (200,) and p.min() >= 1 / 61 and p.max() <= 1 for p in odd.p_values.values())
    for name in COLUMNS:
        assert (odd.p_values[name] <= 0.1).mean() < 0.1 + 4 * math.sqrt(0.09 / 60)
        if name != "png_bytes":  # noise does not compress: all files are equally large
            assert 0.3 < odd.p_values[name].mean() < 0.7


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.1, 0.37])
@pytest.mark.parametrize("column", ["pixel_distance", "png_bytes"])
def test_the_threshold_separates_the_p_values(column: str, rate: float) -> None:
    rng = np.random.default_rng(5)
    scores, normal = rng.integers(0, 300, 500).astype(float), rng.integers(0, 200, 99).astype(float)
    p = conformal_p_values(oriented(column, scores), oriented(column, normal))
    odd = Oddness([""] * 500, {column: scores}, {column: p}, {column: normal}, np.empty(0), [])
    beyond = oriented(column, scores) > oriented(column, odd.threshold(rate, column))
    assert np.array_equal(beyond, p <= rate) and 0 < beyond.sum() < 500


# ---- columns


def test_a_planted_outlier_is_the_oddest_in_every_column_that_can_see_it(model: ImageGPT) -> None:
    """Among striped images one of a single grey, which differs in the mean over pixels, and one of noise."""
    images = np.concatenate([pictures(39, SIDE), noise(1)])
    images[7] = 90
    expected = {"feature_distance": 7, "pixel_distance": 39, "png_bytes": 7}
    odd = odd_images(model, images)
    assert {name: odd.order(name)[0] for name in expected} == expected and odd.order("png_bytes")[-1] == 39
    planted = odd_images(model, images[[7, 39]], against=pictures(200, SIDE, seed=9))
    for name, row in expected.items():
        assert 1 / 101 <= planted.p_values[name][int(row == 39)] <= 0.1


def test_columns_by_hand(model: ImageGPT) -> None:
    images, normal = noise(3), np.concatenate([noise(3, seed=1), pictures(1, SIDE)])
    found = table(measure(model, images), measure(model, normal))
    assert list(found) == list(COLUMNS)
    assert found["nats_per_pixel"] == pytest.approx(nextpixel.nll(model, images), rel=1e-5)
    sizes = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG", compress_level=9)
        sizes.append(len(file.getvalue()))
    assert found["png_bytes"].tolist() == sizes
    their_sizes = table(measure(model, normal), measure(model, normal))["png_bytes"]
    line = np.polyfit(their_sizes, nextpixel.nll(model, normal), 1)
    assert found["nats_corrected"] == pytest.approx(found["nats_per_pixel"] - np.polyval(line, sizes), rel=1e-3)
    maps = np.pad(nextpixel.surprise(model, images), ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    spots = [np.nanmean(maps[:, y : y + 3, x : x + 3], (1, 2)) for y in range(SIDE) for x in range(SIDE)]
    assert found["peak_nats"] == pytest.approx(np.max(spots, 0), rel=1e-4)
    apart = np.sqrt(((images[:, None].astype(float) - normal[None]) ** 2).mean((2, 3, 4)))
    assert found["pixel_distance"] == pytest.approx(apart.mean(1))  # all 4 are among the 5 nearest
    ours, theirs = (nextpixel.features(model, x, layer=1) for x in (images, normal))
    scaled = (ours[:, None] - theirs[None]) / theirs.std(0)
    assert found["feature_distance"] == pytest.approx(np.sqrt((scaled**2).mean(2)).mean(1), rel=1e-3)


def test_without_normal_images_each_is_compared_with_the_others(
    model: ImageGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = noise(7)
    alone = odd_images(model, images)
    apart = np.sqrt(((images[:, None].astype(float) - images[None]) ** 2).mean((2, 3, 4)))
    nearest = np.sort(apart, 1)[:, 1:6].mean(1)  # without itself
    assert alone.values["pixel_distance"] == pytest.approx(nearest)
    assert alone.p_values == alone.calibration == {}
    monkeypatch.setattr("nextpixel.evaluation.oddness.REFERENCES_AT_MOST", 3)
    few = odd_images(model, images).values["pixel_distance"]
    assert few.shape == (7,) and (few > 0).all()


def test_pixels_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images, rng = noise(3_000), np.random.default_rng(0)
    columns = [rng.random(3_000), rng.random(3_000), rng.random((3_000, 4), np.float32), rng.integers(9, 99, 3_000)]
    monkeypatch.setattr("nextpixel.evaluation.oddness.REFERENCES_AT_MOST", 50)
    monkeypatch.setattr("nextpixel.evaluation.oddness.POINTS_AT_ONCE", 3_000)
    whole = table(Measurements(images, *columns), None)
    monkeypatch.setattr("nextpixel.evaluation.oddness.POINTS_AT_ONCE", 256)
    tracemalloc.start()
    parts = table(Measurements(images, *columns), None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * images.size  # all in fp32
    for name in COLUMNS:
        assert np.array_equal(parts[name], whole[name])


def test_the_seed_divides_the_normal_images(model: ImageGPT) -> None:
    images, normal = noise(5), noise(20, seed=1)
    first, again, other = (odd_images(model, images, against=normal, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.p_values["pixel_distance"], again.p_values["pixel_distance"])
    assert np.array_equal(first.values["pixel_distance"], again.values["pixel_distance"])
    assert not np.array_equal(first.values["pixel_distance"], other.values["pixel_distance"])
    assert all(len(values) == 10 for values in first.calibration.values())


def test_normal_images_among_those_to_score_are_counted(model: ImageGPT, capsys: pytest.CaptureFixture[str]) -> None:
    images = noise(12)
    odd_images(model, np.concatenate([images[:3], noise(5, seed=1)]), against=images)
    said = capsys.readouterr().err
    assert "3 of 8 images to score are normal images, so that they look too normal" in said


def test_what_cannot_be_compared_is_refused(model: ImageGPT) -> None:
    with pytest.raises(InputError, match="at least 2 images"):
        odd_images(model, noise(1))
    with pytest.raises(InputError, match="at least 4 normal images, got 3"):
        odd_images(model, noise(2), against=noise(3))
    with pytest.raises(InputError, match="got the same"):
        odd_images(model, noise(5), against=noise(5))
    for deep in (noise(9).astype(np.uint16) * 200, noise(9) / np.float32(300)):  # whose range is measured
        with pytest.raises(InputError, match="got the same"):
            odd_images(model, deep, against=deep.copy())
        assert odd_images(model, deep[1:], against=deep).p_values
    with pytest.raises(InputError, match="at least 99 held-out normal images, got 10"):
        odd_images(model, noise(5), against=noise(20, seed=1), false_alarms=0.01)
    with pytest.raises(InputError, match="got 0"):
        odd_images(model, noise(5)).threshold(0.01)
    masked = ImageGPT(ImageGPTConfig(layers=1, width=16, heads=2, side=SIDE, colors=8, objective="masked"))
    with pytest.raises(InputError, match="masked model"):
        odd_images(masked, noise(5))


# ---- the page and the files


class Page(HTMLParser):
    """What a page holds: tags with their attributes, and the rows of its table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self.rows and data.strip():
            self.rows[-1].append(data.strip())

    def images(self) -> list[np.ndarray]:
        sources = [str(attributes["src"]) for tag, attributes in self.tags if tag == "img"]
        head = "data:image/png;base64,"
        assert all(source.startswith(head) for source in sources)
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(s[len(head) :])))) for s in sources]


def test_the_page_needs_nothing_else_and_shows_images_and_maps(model: ImageGPT) -> None:
    odd = odd_images(model, noise(30), against=noise(60, seed=1))
    order = odd.order("peak_nats")
    maps = nextpixel.surprise(model, odd.images[order[:3]])
    text = page(
        odd, maps, source="<b>photos</b> \udce9", model="tiny", by="peak_nats", against="normal", false_alarms=0.1
    )
    found = Page(text)
    assert re.findall(r"https?:|//[a-z]|url\((?!#)|@import|\$", re.sub(r"base64,[^\"]+", "", text)) == []
    assert [tag for tag, a in found.tags if tag in ("link", "iframe", "base") or a.get("href", "#")[0] != "#"] == []
    assert [a for tag, a in found.tags if tag == "script" and a] == []
    shown = found.images()
    assert len(shown) == 6 and all(image.shape == (SIDE, SIDE, 3) for image in shown)
    assert np.array_equal(shown[0], odd.images[order[0]])
    assert not np.array_equal(shown[1], shown[0])
    hottest = np.unravel_index(local_nats(maps)[0].argmax(), maps[0].shape)
    assert shown[1][hottest].sum() == shown[1].sum(-1).max() > 500  # the palest of all
    assert all(attributes.get("alt") for tag, attributes in found.tags if tag == "img")
    assert "<b>photos" not in text and "&lt;b&gt;photos" in text and r"\udce9" in text
    head, *rows = found.rows
    titles = [column.title for column in COLUMNS.values()]
    titles.remove("hottest spot")
    assert head == ["file", "hottest spot", *titles]  # the column that orders stands first
    hot = sorted((float(value) for value in odd.values["peak_nats"]), reverse=True)
    assert [float(row[1]) for row in rows] == pytest.approx(hot, abs=5e-4)
    assert len(rows) == 30 and rows[0][0] == odd.names[order[0]]
    assert [cell.startswith("p ") for cell in rows[0][2:13:2]] == [True] * 6
    assert f"{len(odd):,} images</text>" in text and "30 normal images, scaled to the same area</text>" in text
    assert f"threshold: odd above {odd.threshold(0.1, 'peak_nats'):.3f}</text>" in text
    assert "held-out images of normal" in text and "scores cannot see" in text and "false alarms" in text
    text.encode("utf-8")


def test_a_page_of_equal_images_and_without_normal_ones(model: ImageGPT) -> None:
    odd = odd_images(model, np.full((3, SIDE, SIDE, 3), 128, np.uint8))
    text = page(odd, nextpixel.surprise(model, odd.images), source="same", model="tiny", by="png_bytes")
    assert "nan" not in text and "only a ranking" in text
    again = page(odd, nextpixel.surprise(model, odd.images), source="same", model="tiny", by="png_bytes")
    assert again == text, "without dates and random ids"


@pytest.fixture
def desk(model: ImageGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    threads = torch.get_num_threads()
    nextpixel.save(model, tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for i, image in enumerate([*pictures(9, SIDE), noise(1)[0]]):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}, a.png")
    np.save(tmp_path / "normal.npy", pictures(60, SIDE, seed=3))
    monkeypatch.chdir(tmp_path)
    assert torch.get_num_threads() == threads
    return tmp_path


def test_the_command_writes_the_same_columns_everywhere(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["score", "photos", "--model", "model", "--against", "normal.npy", "--false-alarms", "0.1"]
    arguments += ["--by", "pixel_distance", "--report", "odd.html", "--out", "odd.csv"]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    with open("odd.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ["file", *COLUMNS, *(f"p_{name}" for name in COLUMNS)]
    assert list(rows[0]) == list(told["images"][0]) == columns
    assert [row["file"] for row in rows] == [row["file"] for row in told["images"]]
    assert rows[0]["file"] == "9, a.png"
    assert [float(row["pixel_distance"]) for row in rows] == [row["pixel_distance"] for row in told["images"]]
    beyond = [row["file"] for row in told["images"] if row["p_pixel_distance"] <= 0.1]
    assert told["alarms"]["images"] == len(beyond) and set(told["alarms"]["thresholds"]) == set(COLUMNS)
    assert len(Page(Path("odd.html").read_text(encoding="utf-8")).images()) == 20

    assert main(arguments) == 0
    *listed, summary, mean, report, out = capsys.readouterr().out.splitlines()
    assert [line.partition("  p ")[2].split("  ")[1] for line in listed] == beyond
    assert summary.startswith(f"{len(beyond)} of 10 images beyond pixel distance ") and mean.startswith("mean ")
    assert (report, out) == ("odd.html", "odd.csv")
    assert [path.name for path in desk.iterdir() if "part" in path.name] == []


def test_the_command_without_normal_images(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "photos", "--model", "model", "--out", "odd.csv", "--heatmap", "hot"]) == 0
    out, err = capsys.readouterr()
    assert "ordered by feature distance; use --by for another order" in out
    assert len(out.splitlines()) == 13 and len(list(Path("hot").iterdir())) == 10
    assert "nextpixel score photos --against normal/ --report odd.html --model model" in err
    with open("odd.csv", newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["file", *COLUMNS]


def test_by_names_every_column() -> None:
    assert typing.get_args(By) == tuple(COLUMNS)


@pytest.mark.parametrize(
    ("options", "by"),
    [
        ([], "feature_distance"),
        (["--against", "normal.npy", "--false-alarms", "0.1"], "feature_distance"),  # chosen before looking
        (["--against", "strange.npy"], None),  # whichever is clearest
        (["--against", "normal.npy", "--by", "png_bytes"], "png_bytes"),
    ],
)
def test_the_column_that_orders_by_default(
    desk: Path, capsys: pytest.CaptureFixture[str], options: list[str], by: str | None
) -> None:
    np.save(desk / "strange.npy", noise(60))
    assert main(["score", "photos", "--model", "model", "--report", "odd.html", "--json", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    clearest = odd_images(nextpixel.load("model"), "photos", against="strange.npy").clearest
    assert told["by"] == (by or clearest)
    [head, *_] = Page(Path("odd.html").read_text(encoding="utf-8")).rows
    assert head[1] == COLUMNS[told["by"]].title
