"""The page of nextpixel serve, driven in Chromium against the real server with the embedded model."""

import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import lively, with_words
from PIL import Image

import nextpixel
from nextpixel.images import fit_image
from nextpixel.server.schema import Sample
from nextpixel.tokens.patches import Patches

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CAT = Path(nextpixel.__file__).parent / "assets" / "pictures" / "cat.jpg"
SIDE = 32
WAIT = 60_000  # milliseconds, for drawings on one slow core


def needs(found: object, name: str) -> None:
    """Skip the tests if it is missing; in CI, fail."""
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed")


@contextmanager
def serve(*options: str) -> Iterator[str]:
    """The address of a server."""
    needs(find_spec("fastapi"), "the extra `server`")
    command = [
        sys.executable,
        "-m",
        "nextpixel",
        "serve",
        "--port",
        "0",
        "--threads",
        "1",
        "--speed",
        "exact",
        *options,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            found = re.search(r"http://[\w.:\[\]]+", line)
            assert found, line
            yield found[0].rstrip("/")
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serve() as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    needs(find_spec("playwright"), "playwright")
    needs(CHROMIUM, "Chromium")
    from playwright.sync_api import sync_playwright

    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # root has none
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


class Visit:
    """A page; on closing, it must have sent no request to another host and logged nothing on the console."""

    def __init__(self, browser: Any, address: str, **settings: Any) -> None:
        from playwright.sync_api import expect

        self.expect = expect
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **settings})
        self.context.set_default_timeout(WAIT)
        expect.set_options(timeout=WAIT)
        self.page = self.context.new_page()
        self.address, self.expected = address, ""
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complain(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def open(self) -> "Visit":
        self.page.goto(self.address)
        self.expect(self.page.locator("#picture")).to_have_attribute("aria-label", re.compile("as the model sees it"))
        return self

    def close(self) -> None:
        self.context.close()
        strange = [url for url in self.asked if not url.startswith((f"{self.address}/", "data:", "blob:"))]
        assert strange == []
        unexpected = [text for text in self.complaints if not self.expected or not re.search(self.expected, text)]
        assert unexpected == []

    def value(self, script: str) -> Any:
        return self.page.evaluate(script)

    @property
    def rows_kept(self) -> int:
        return int(self.page.get_attribute("#line", "aria-valuenow"))

    def set(self, n: int = 2, kept: int = 29, seed: int = 0) -> None:
        self.page.fill("#n", str(n))
        self.page.fill("#seed", str(seed))
        self.page.locator("#line").press("Home")
        for _ in range(kept):
            self.page.locator("#line").press("ArrowDown")
        assert self.rows_kept == kept

    def done(self) -> None:
        self.expect(self.page.locator("#said")).to_have_text(re.compile("Drawn with seed"))

    def draw(self, button: str = "#complete") -> list[str]:
        self.page.click(button)
        self.done()
        return self.pictures()

    def pictures(self) -> list[str]:
        return self.value("state.tiles.map(tile => tile.canvas.toDataURL())")

    def tab_to(self, selector: str) -> None:
        for _ in range(60):
            self.page.keyboard.press("Tab")
            if self.value(f"document.activeElement.matches({selector!r})"):
                return
        raise AssertionError(f"the Tab key does not reach {selector}")


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address).open()
    yield visit
    visit.close()


@pytest.fixture
def phone(browser: Any, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True).open()
    yield visit
    visit.close()


def pixels(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


def drop(visit: Visit, name: str, content: bytes, event: str = "drop") -> None:
    data = visit.page.evaluate_handle(
        """([name, content]) => {
            const data = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
            data.items.add(new File([bytes], name, {type: "image/jpeg"}));
            return data;
        }""",
        [name, base64.b64encode(content).decode()],
    )
    visit.page.evaluate(
        """([event, data]) => document.body.dispatchEvent(event === "paste"
            ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true})
            : new DragEvent(event, {dataTransfer: data, bubbles: true, cancelable: true}))""",
        [event, data],
    )


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_picture_dropped_or_pasted_is_shown_as_the_model_sees_it(visit: Visit, event: str) -> None:
    red = io.BytesIO()
    Image.new("RGB", (80, 50), (255, 0, 0)).save(red, "PNG")
    drop(visit, "red.png", red.getvalue(), event)
    visit.expect(visit.page.locator("#picture")).to_have_attribute("aria-label", "red.png, as the model sees it")
    seen = pixels(visit.value("document.getElementById('picture').toDataURL()"))
    assert seen.size == (SIDE, SIDE)
    colours = seen.getcolors()
    assert colours is not None and len(colours) == 1
    red_part, green_part, blue_part = colours[0][1]
    assert red_part > 180 and green_part < 60 and blue_part < 60  # the nearest colour of the palette
    assert visit.page.locator("#thumbs [aria-pressed=true]").count() == 0


def test_a_picture_is_chosen_from_a_file_or_from_the_examples(visit: Visit) -> None:
    visit.page.set_input_files("#file", CAT)
    visit.expect(visit.page.locator("#command")).to_contain_text("nextpixel complete cat.jpg --keep 0.5 -n 6 --seed 0")
    name = visit.page.locator("#thumbs button").nth(1).get_attribute("aria-label")
    visit.page.locator("#thumbs button").nth(1).click()
    visit.expect(visit.page.locator("#picture")).to_have_attribute("aria-label", f"{name}, as the model sees it")
    visit.expect(visit.page.locator("#thumbs [aria-pressed=true]")).to_have_count(1)


def test_the_line_follows_the_pointer_and_the_tiles_show_what_is_kept(visit: Visit) -> None:
    box = visit.page.locator("#stage").bounding_box()
    assert box
    middle = box["x"] + box["width"] / 2
    visit.page.mouse.move(middle, box["y"] + box["height"] / 2)
    visit.page.mouse.down()
    visit.page.mouse.move(middle, box["y"] + box["height"] * 0.25, steps=4)
    assert visit.rows_kept == SIDE // 4
    visit.page.mouse.move(middle, box["y"] + 2 * box["height"])
    visit.page.mouse.up()
    assert visit.rows_kept == SIDE - 1  # one row at least is drawn
    visit.page.mouse.move(middle, box["y"])
    assert visit.rows_kept == SIDE - 1  # let go
    kept = visit.value("[...state.tiles[0].context.getImageData(0, 0, 1, 32).data].filter((_, i) => i % 4 === 3)")
    assert kept == [255] * (SIDE - 1) + [0]


def test_completions_arrive_row_by_row_and_keep_the_given_rows(visit: Visit) -> None:
    visit.set(n=3, kept=26)
    given = pixels(visit.value("document.getElementById('picture').toDataURL()"))
    drawn = visit.draw()
    assert len(set(drawn)) == 3
    for picture in map(pixels, drawn):
        top = (0, 0, SIDE, 26)
        assert picture.crop(top).tobytes() == given.crop(top).tobytes()
    captions = visit.page.locator(".caption").all_text_contents()
    assert all(re.fullmatch(r"\d+\.\d\d nats per pixel", caption) for caption in captions), captions
    visit.expect(visit.page.locator("#live")).to_have_text(
        re.compile(r"Drawn with seed 0: 3 completions, [\d.]+ to [\d.]+ nats per pixel\.")
    )
    assert visit.value("document.getElementById('progress').value") == 1


def test_the_same_seed_gives_the_same_pictures_and_another_seed_others(visit: Visit) -> None:
    visit.set(seed=7)
    first = visit.draw()
    visit.set(seed=8)
    other = visit.draw()
    visit.set(seed=7)
    assert visit.draw() == first
    assert other != first


def test_pictures_from_scratch(visit: Visit) -> None:
    visit.page.fill("#n", "1")
    visit.page.click("summary")
    visit.page.fill("#top-k", "40")
    visit.page.fill("#temperature", "0.9")
    (drawn,) = visit.draw("#sample")
    assert pixels(drawn).size == (SIDE, SIDE)
    command = "nextpixel sample -n 1 --seed 0 --temperature 0.9 --top-k 40 --speed exact"
    assert visit.page.text_content("#command") == command.replace("sample", "complete cat.jpg --keep 0.5", 1)
    visit.page.click(".tile")
    visit.page.click("#copy-command")
    visit.expect(visit.page.locator("#copy-command")).to_have_text("Copied")
    visit.expect(visit.page.locator("#large-said")).to_have_text(re.compile("nats per pixel · seed 0$"))


def test_stop_keeps_the_rows_that_arrived_and_frees_the_buttons(visit: Visit) -> None:
    visit.set(n=8, kept=0)
    visit.page.click("#complete")
    visit.expect(visit.page.locator("#said")).to_have_text(re.compile(r"\d+ of 256 rows"))
    visit.expect(visit.page.locator("#complete")).to_have_attribute("aria-disabled", "true")
    visit.page.click("#stop")
    visit.expect(visit.page.locator("#said")).to_have_text("Stopped")
    visit.expect(visit.page.locator(".caption").first).to_have_text(re.compile(r"stopped after row \d+"))
    visit.expect(visit.page.locator("#stop")).to_be_disabled()
    assert visit.value("document.activeElement.id") == "complete"
    visit.set()
    visit.draw()


def test_another_picture_ends_a_drawing(visit: Visit) -> None:
    visit.set(n=4, kept=0)
    visit.page.click("#complete")
    visit.expect(visit.page.locator("#said")).to_have_text(re.compile(r"\d+ of 128 rows"))
    visit.page.locator("#thumbs button").nth(2).click()
    visit.expect(visit.page.locator("#stop")).to_be_disabled()
    visit.expect(visit.page.locator("#said")).to_have_text("")
    visit.set()
    visit.draw()


def test_nothing_moves_while_rows_arrive(visit: Visit) -> None:
    visit.set(n=5, kept=26)
    measure = """[...document.querySelectorAll('main, section, form, .actions, #said, .tile, .caption, .command')]
        .map(element => element.getBoundingClientRect()).map(({x, y, width, height}) => [x, y, width, height])"""
    visit.value(
        """() => { window.moved = 0; new PerformanceObserver(list => {
            for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.moved += entry.value;
        }).observe({type: "layout-shift"}); }"""
    )
    visit.page.locator("#complete").scroll_into_view_if_needed()
    before = visit.value(measure)
    visit.page.click("#complete")
    seen = 0
    while "Drawn" not in (visit.page.text_content("#said") or ""):
        assert visit.value(measure) == before
        seen += 1
        visit.page.wait_for_timeout(50)
    assert seen > 3
    assert visit.value(measure) == before
    assert visit.value("window.moved") == 0


def test_a_picture_is_enlarged_and_downloaded(visit: Visit, tmp_path: Path) -> None:
    visit.set()
    drawn = visit.draw()
    visit.page.locator(".tile").nth(1).click()
    visit.expect(visit.page.locator("#large-title")).to_have_text("Candidate 2 of 2")
    for link, side in (("#download", SIDE), ("#download-large", 1024)):
        with visit.page.expect_download() as coming:
            visit.page.click(link)
        assert re.fullmatch(r"cat-seed0-2(-x32)?\.png", coming.value.suggested_filename)
        coming.value.save_as(tmp_path / "got.png")
        got = Image.open(tmp_path / "got.png").convert("RGB")
        assert got.size == (side, side)
        if side == SIDE:
            assert got.tobytes() == pixels(drawn[1]).tobytes()
    whole, kept = np.asarray(got, float), 29 * 32  # the photograph joined to what was drawn
    small = np.asarray(pixels(drawn[1]).resize((1024, 1024), Image.Resampling.BICUBIC), float)
    with Image.open(CAT) as photo:
        seen = fit_image(photo, (1024, 1024))
    assert 2 * np.abs(whole - seen)[:kept].mean() < np.abs(small - seen)[:kept].mean()
    assert np.abs(whole - small)[kept + 32 :].mean() < 3
    visit.page.keyboard.press("ArrowRight")
    visit.expect(visit.page.locator("#large-title")).to_have_text("Candidate 1 of 2")
    visit.value("(state.drawing = new AbortController(), paintLarge())")
    assert visit.page.get_attribute("#download", "href") is None  # it would be encoded at every row
    visit.value("(state.drawing = null, paintLarge())")
    assert visit.page.get_attribute("#download", "href").startswith("data:image/png")
    visit.page.keyboard.press("Escape")
    visit.expect(visit.page.locator("#large")).to_be_hidden()


def test_the_command_draws_the_same_pictures(visit: Visit) -> None:
    visit.set(seed=3)
    drawn = visit.draw()
    command = "nextpixel complete cat.jpg --keep 0.90625 -n 2 --seed 3 --speed exact"
    assert visit.page.text_content("#command") == command
    visit.expect(visit.page.locator("#rounded")).to_be_hidden()
    same = nextpixel.complete(nextpixel.load(), CAT, keep=0.90625, n=2, seed=3, speed="exact")
    assert [picture.tobytes() for picture in same] == [pixels(url).tobytes() for url in drawn]


def test_the_request_draws_the_same_pictures(visit: Visit, tmp_path: Path) -> None:
    needs(shutil.which("curl"), "curl")
    name = 'my "cat";,.jpg'
    (tmp_path / name).write_bytes(CAT.read_bytes())
    drop(visit, name, CAT.read_bytes())
    visit.expect(visit.page.locator("#picture")).to_have_attribute("aria-label", re.compile("my .cat"))
    visit.page.click("summary")
    visit.page.fill("#forbid-colors", "#010101,7")
    visit.page.fill("#temperature", "0.9")
    visit.set(kept=30, seed=5)
    drawn = visit.draw()
    words = shlex.split(visit.page.text_content("#curl"))
    assert words[-1] == f"{visit.address}/v1/complete"
    words[words.index("format=png")] = "format=json"
    subprocess.run([*words, "-s"], cwd=tmp_path, check=True)
    images = json.loads((tmp_path / "drawn.png").read_text())["images"]
    assert [pixels(f",{image}").tobytes() for image in images] == [pixels(url).tobytes() for url in drawn]


def test_a_link_sets_the_settings(visit: Visit) -> None:
    visit.set(n=3, kept=10, seed=77)
    visit.page.click("summary")
    visit.page.fill("#top-k", "40")
    visit.page.fill("#allow-colors", "#ff0000, 3")
    visit.tab_to("#copy-link")
    visit.page.keyboard.press("Enter")
    visit.expect(visit.page.locator("#copy-link")).to_have_text(re.compile("opied"))
    link = visit.page.url
    assert "#" in link and len(link) < 150
    visit.page.goto("about:blank")
    visit.page.goto(link)
    visit.expect(visit.page.locator("#picture")).to_have_attribute("aria-label", re.compile("as the model sees it"))
    fields = ("n", "seed", "top-k", "allow-colors", "temperature")
    assert [visit.page.input_value(f"#{name}") for name in fields] == ["3", "77", "40", "#ff0000, 3", "1"]
    assert visit.rows_kept == 10 and visit.page.locator("#top-k").is_visible()
    visit.page.goto(f"{visit.address}/#n=500&seed=-1&temperature=0.5&keep=nan&model=other")  # what is wrong is left out
    visit.expect(visit.page.locator("#temperature")).to_have_value("0.5")
    assert [visit.page.input_value(f"#{name}") for name in ("n", "seed", "top-k")] == ["6", "0", ""]


def trace(visit: Visit, *points: tuple[int, int]) -> None:
    """A stroke with the mouse through pixels (column, row) of the picture."""
    box = visit.page.locator("#stage").bounding_box()
    assert box
    zoom = box["width"] / SIDE
    places = [(box["x"] + (x + 0.5) * zoom, box["y"] + (y + 0.5) * zoom) for x, y in points]
    visit.page.mouse.move(*places[0])
    visit.page.mouse.down()
    for place in places:
        visit.page.mouse.move(*place)
    visit.page.mouse.up()


def painted(visit: Visit) -> np.ndarray:
    if visit.page.locator("#hole").is_hidden():
        return np.zeros((SIDE, SIDE), bool)
    url = visit.value("document.getElementById('hole').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))[..., 3] > 0


def tool(visit: Visit, name: str) -> None:
    visit.page.get_by_role("button", name=name, exact=True).click()


def test_a_hole_is_painted_erased_undone_and_cleared(visit: Visit) -> None:
    rows = visit.page.text_content("#command")
    tool(visit, "Brush")
    trace(visit, (5, 10), (20, 10))
    stroke = np.zeros((SIDE, SIDE), bool)
    stroke[10, 4:22] = stroke[9, 5:21] = stroke[11, 5:21] = True
    assert np.array_equal(painted(visit), stroke)
    visit.expect(visit.page.locator("#kept")).to_have_text(f"{stroke.sum()} pixels of 1,024 to fill")
    visit.expect(visit.page.locator("#line")).to_be_hidden()
    tool(visit, "Eraser")
    trace(visit, (12, 2), (12, 25))
    erased = stroke.copy()
    erased[9:12, 11:14] = False
    assert np.array_equal(painted(visit), erased)
    tool(visit, "Rectangle")
    trace(visit, (30, 31), (25, 20), (26, 28))  # the corners as they are in the end, in any order
    boxed = erased.copy()
    boxed[28:32, 26:31] = True
    assert np.array_equal(painted(visit), boxed)
    tool(visit, "Undo")
    assert np.array_equal(painted(visit), erased)
    visit.page.keyboard.press("Control+z")
    assert np.array_equal(painted(visit), stroke)
    visit.page.locator("#radius").press("Home")
    tool(visit, "Brush")
    trace(visit, (2, 28), (9, 28))
    thin = stroke.copy()
    thin[28, 2:10] = True
    assert np.array_equal(painted(visit), thin)
    visit.page.locator("#n").press("Control+z")  # that of the field
    assert np.array_equal(painted(visit), thin)
    tool(visit, "Undo")
    assert np.array_equal(painted(visit), stroke)
    visit.tab_to("#clear")
    visit.page.keyboard.press("Enter")
    assert not painted(visit).any()
    assert visit.page.text_content("#command") == rows
    visit.expect(visit.page.locator("#line")).to_be_visible()
    tool(visit, "Undo")
    assert np.array_equal(painted(visit), stroke)
    visit.page.locator("#thumbs button").nth(1).click()
    visit.expect(visit.page.locator("#hole")).to_be_hidden()  # another picture has no hole


@pytest.mark.parametrize("way", ["undone", "another picture"])
def test_a_rectangle_that_is_dragged_may_be_undone(visit: Visit, way: str) -> None:
    tool(visit, "Rectangle")
    box = visit.page.locator("#stage").bounding_box()
    visit.page.mouse.move(box["x"] + 20, box["y"] + 20)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 60, box["y"] + 60)
    assert painted(visit).any()
    if way == "undone":
        visit.page.keyboard.press("Control+z")
    else:
        visit.value("document.querySelectorAll('#thumbs button')[1].click()")
        visit.expect(visit.page.locator("#hole")).to_be_hidden()
    visit.page.mouse.move(box["x"] + 90, box["y"] + 90)
    visit.page.mouse.up()
    assert not painted(visit).any()


def test_a_box_is_typed_by_keyboard_alone(visit: Visit) -> None:
    press, error = visit.page.keyboard.press, visit.page.locator("#box-error")
    visit.tab_to("#box")
    for wrong in ("1,2,3", "5,5,5,9", "0,0,33,8", "a,b,c,d", "-1,0,4,4", "1.5,0,4,4"):
        press("Control+A")
        visit.page.keyboard.type(wrong)
        press("Enter")
        visit.expect(error).to_have_text(
            "Box: left, top, right and bottom are required, within 0, 0, 32, 32, as in 8, 8, 24, 24."
        )
        assert not painted(visit).any()
    for boxes in (["1, 2,4,6"], ["1, 2,4,6", "20,20,32,32"]):
        press("Control+A")
        visit.page.keyboard.type(boxes[-1])
        press("Enter")
        expected = np.zeros((SIDE, SIDE), bool)
        for left, top, right, bottom in (map(int, box.split(",")) for box in boxes):
            expected[top:bottom, left:right] = True
        assert np.array_equal(painted(visit), expected)
        visit.expect(error).to_have_text("")
    visit.expect(visit.page.locator("#kept")).to_have_text(f"{expected.sum()} pixels of 1,024 to fill")
    assert visit.value("document.activeElement.id") == "box"


def test_with_no_tool_chosen_the_line_is_dragged_as_before(visit: Visit) -> None:
    for _ in range(2):
        tool(visit, "Brush")  # chosen and put away
    trace(visit, (10, 16), (10, 8))
    assert not painted(visit).any() and visit.rows_kept == 9  # of the middle of row 8


@pytest.mark.parametrize(
    ("name", "points", "option"),
    [("Rectangle", [(11, 12), (18, 16)], "--box 11,12,19,17"), ("Brush", [(3, 4), (9, 12)], "--mask mask.png")],
)
def test_a_hole_is_filled_as_the_command_does_and_all_else_is_kept(
    visit: Visit, tmp_path: Path, name: str, points: list[tuple[int, int]], option: str
) -> None:
    visit.set(seed=4)
    tool(visit, name)
    trace(visit, *points)
    mask = painted(visit)
    given = np.asarray(pixels(visit.value("document.getElementById('picture').toDataURL()")))
    drawn = visit.draw()
    assert len(set(drawn)) == 2
    for url in drawn:
        whole = np.asarray(pixels(url))
        assert np.array_equal(whole[~mask], given[~mask]) and not np.array_equal(whole[mask], given[mask])
    visit.expect(visit.page.locator("#command")).to_have_text(
        f"nextpixel complete cat.jpg {option} -n 2 --seed 4 --speed exact"
    )
    told: Any = mask
    link = visit.page.locator("#save-mask")
    if "--mask" in option:
        with visit.page.expect_download() as coming:
            link.click()
        assert coming.value.suggested_filename == "mask.png"
        told = tmp_path / "mask.png"
        coming.value.save_as(told)
    else:
        visit.expect(link).to_be_hidden()
    same = nextpixel.complete(nextpixel.load(), CAT, mask=told, n=2, seed=4, speed="exact")
    assert [picture.tobytes() for picture in same] == [pixels(url).tobytes() for url in drawn]
    visit.page.locator(".tile").first.click()
    visit.expect(visit.page.locator("#large-said")).to_contain_text(f"{mask.sum()} pixels of 1,024 to fill")
    visit.page.keyboard.press("Escape")
    visit.draw("#sample")  # is not affected by the hole


@pytest.mark.parametrize("width", [360, 768])
def test_a_finger_paints_and_the_page_does_not_scroll(browser: Any, address: str, width: int) -> None:
    visit = Visit(browser, address, viewport={"width": width, "height": 900}, has_touch=True).open()
    tool(visit, "Brush")
    box = visit.page.locator("#stage").bounding_box()
    assert box
    touch = visit.context.new_cdp_session(visit.page)
    zoom = box["width"] / SIDE
    for kind, row in (("touchStart", 4), ("touchMove", 12), ("touchMove", 24), ("touchEnd", None)):
        point = [] if row is None else [{"x": box["x"] + 16.5 * zoom, "y": box["y"] + (row + 0.5) * zoom}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": point})
    assert painted(visit)[3:26, 16].all() and painted(visit).sum() == 3 * 21 + 2
    assert visit.value("scrollY") == 0 and visit.value("document.documentElement.scrollWidth") == width
    visit.close()


def test_surprise_is_shown_over_the_picture(visit: Visit) -> None:
    visit.page.click("#surprise")
    visit.expect(visit.page.locator("#heat")).to_be_visible()
    visit.expect(visit.page.locator("#scale-mean")).to_have_text(re.compile(r"mean \d\.\d\d nats"))
    colours = pixels(visit.value("document.getElementById('heat').toDataURL()")).getcolors(SIDE * SIDE)
    assert colours is not None and len(colours) > 100
    visit.page.click("#surprise")
    visit.expect(visit.page.locator("#heat")).to_be_hidden()


def test_an_unreadable_picture_gives_an_error_beside_the_picture(visit: Visit) -> None:
    visit.expected = "status of 422"
    before = visit.value("document.getElementById('picture').toDataURL()")
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"}
    visit.page.set_input_files("#file", broken)
    visit.expect(visit.page.locator("#picture-error")).to_have_text(re.compile("^broken.png: its content"))
    assert visit.value("document.getElementById('picture').toDataURL()") == before
    visit.page.set_input_files("#file", CAT)
    visit.expect(visit.page.locator("#picture-error")).to_have_text("")


def test_without_a_picture_nothing_is_completed(browser: Any, address: str) -> None:
    visit = Visit(browser, address)
    visit.page.route("**/v1/pictures", lambda route: route.fulfill(json={"pictures": []}))
    visit.page.goto(address)
    visit.expect(visit.page.locator("#hint")).to_be_visible()
    visit.expect(visit.page.locator("#command")).to_contain_text("nextpixel sample -n 6")
    for button, place in (("#complete", "#draw-error"), ("#surprise", "#surprise-error")):
        visit.page.click(button)
        visit.expect(visit.page.locator(place)).to_have_text("Choose a picture first.")
    visit.page.set_input_files("#file", CAT)
    visit.expect(visit.page.locator("#hint")).to_be_hidden()
    for place in ("#draw-error", "#surprise-error"):
        visit.expect(visit.page.locator(place)).to_have_text("")
    visit.close()


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("n", "0", "Completions: a whole number from 1 to"),
        ("seed", "1.5", "Seed: a whole number from 0"),
        ("top-p", "2", "Top-p: a number from 0.01 to 1 is required."),
    ],
)
def test_a_setting_out_of_range_gives_an_error_beside_the_settings(
    visit: Visit, field: str, value: str, sentence: str
) -> None:
    visit.page.click("summary")
    visit.page.fill(f"#{field}", value)
    visit.page.click("#complete")
    visit.expect(visit.page.locator("#settings-error")).to_contain_text(sentence)
    assert visit.value("document.activeElement.id") == field
    assert visit.page.get_attribute(f"#{field}", "aria-invalid") == "true"
    assert not [url for url in visit.asked if url.endswith("/v1/complete")]


def test_a_server_that_is_gone_gives_an_error_beside_the_buttons(visit: Visit) -> None:
    visit.expected = "net::ERR"
    visit.page.route("**/v1/complete", lambda route: route.abort())
    visit.page.click("#complete")
    visit.expect(visit.page.locator("#draw-error")).to_have_text(re.compile("does not answer"))
    visit.expect(visit.page.locator("#stop")).to_be_disabled()


def test_a_token_is_asked_for_when_the_server_wants_one(browser: Any, address: str) -> None:
    visit = Visit(browser, address)
    visit.expected = "status of 401"

    def answer(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer open":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "a token is needed"}})

    visit.page.route("**/v1/**", answer)
    visit.page.goto(visit.address)
    for token in ("open\u2026", "shut", "open"):
        visit.page.fill("#token", token)
        visit.page.keyboard.press("Enter")
        if token == "open\u2026":
            visit.expect(visit.page.locator("#start-error")).to_contain_text("something else was pasted with it")
        if token == "shut":
            visit.expect(visit.page.locator("#start-error")).to_have_text("That token was not accepted.")
    visit.expect(visit.page.locator("#token-form")).to_be_hidden()
    assert visit.value("document.activeElement.id") == "complete"
    visit.expect(visit.page.locator("#start-error")).to_have_text("")
    visit.expect(visit.page.locator("#picture")).to_have_attribute("aria-label", re.compile("as the model sees it"))
    visit.close()


PHOTOS = {"id": "runs/photos", "trained_on": None, "mode": "int8"}


def test_one_of_several_models_is_chosen(browser: Any, address: str) -> None:
    visit = Visit(browser, address)

    def answer(route: Any) -> None:
        told = route.fetch().json()
        told["models"] = [told["models"][0], {**told["models"][0], **PHOTOS}]
        route.fulfill(json=told)

    visit.page.route("**/v1/models", answer)
    sent: list[str] = []
    visit.page.on("request", lambda request: sent.append(request.post_data or "") if "encode" in request.url else None)
    visit.page.route(
        "**/v1/encode",
        lambda route: route.continue_(post_data=(route.request.post_data or "").replace("runs/photos", "embedded")),
    )
    visit.open()
    visit.expect(visit.page.locator("#facts")).to_contain_text("CIFAR-10")
    visit.page.select_option("#model", "runs/photos")
    visit.expect(visit.page.locator("#facts")).not_to_contain_text("CIFAR-10")
    visit.expect(visit.page.locator("#command")).to_contain_text("--model runs/photos")
    visit.expect(visit.page.locator("#limits")).to_contain_text("not recorded")
    visit.expect(visit.page.locator("#rounded")).to_contain_text("uses int8 weights")
    visit.value("state.models[1].mode = 'packed fp32'; showModel()")
    visit.expect(visit.page.locator("#rounded")).to_contain_text("rounds in another way (packed fp32)")
    assert '"model":"runs/photos"' in sent[-1]
    visit.close()


def test_by_keyboard_alone(visit: Visit) -> None:
    press = visit.page.keyboard.press
    visit.tab_to("#line")
    assert (
        visit.value("getComputedStyle(document.querySelector('#line i')).outlineStyle") == "solid"
    )  # focus is visible
    for key, kept in (("ArrowUp", 15), ("ArrowDown", 16), ("PageUp", 12), ("Home", 0), ("End", 31), ("ArrowLeft", 30)):
        press(key)
        assert visit.rows_kept == kept
    assert visit.page.get_attribute("#line", "aria-valuetext") == "30 of 32 rows kept"
    visit.tab_to("#complete")
    press("Enter")
    visit.done()
    assert visit.value("document.activeElement.id") == "complete"
    visit.tab_to("#n")
    press("Control+A")
    visit.page.keyboard.type("2")
    press("Enter")
    visit.expect(visit.page.locator(".tile")).to_have_count(2)
    visit.done()
    visit.tab_to(".tile")
    press("Enter")
    visit.expect(visit.page.locator("#large")).to_be_visible()
    press("Escape")
    visit.expect(visit.page.locator("#large")).to_be_hidden()
    assert visit.value("document.activeElement.matches('.tile')")


def test_every_control_has_a_name(visit: Visit) -> None:
    for role, name in (
        ("slider", "Rows kept, from the top"),
        ("spinbutton", "Completions"),
        ("spinbutton", "Seed"),
        ("progressbar", "Rows drawn"),
        ("button", "Choose a picture"),
        ("button", "Dark theme"),
        ("group", "Paint what to fill"),
        ("button", "Rectangle"),
        ("img", "cat.jpg, as the model sees it"),
    ):
        assert visit.page.get_by_role(role, name=name).count() == 1, name
    visit.page.click("summary")
    nameless = re.findall(
        r"^\s*- (?:button|textbox|spinbutton|slider|combobox)$", visit.page.locator("body").aria_snapshot(), re.M
    )
    assert nameless == []


def test_on_a_phone(phone: Visit) -> None:
    for width in (320, 390):
        phone.page.set_viewport_size({"width": width, "height": 844})
        assert phone.value("document.documentElement.scrollWidth") == width
        box = phone.page.locator("#stop").bounding_box()
        assert box and box["x"] + box["width"] <= width
    phone.page.fill("#n", "2")
    box = phone.page.locator("#line i").bounding_box()
    assert box
    phone.page.locator("#stage").tap(position={"x": 100, "y": 340})
    assert phone.rows_kept >= 30
    phone.page.locator("#complete").tap()
    phone.done()
    tiles = phone.page.locator(".tile")
    phone.expect(tiles.last).to_be_in_viewport(ratio=1)  # the page went there by itself
    widths = [tiles.nth(i).evaluate("element => element.getBoundingClientRect().width") for i in range(2)]
    assert widths == [167, 167]  # photographs are smooth, and as wide as their columns
    for button in ("#complete", "#sample", "#stop", "#theme", "#new-seed"):
        assert phone.page.locator(button).evaluate("element => element.getBoundingClientRect().height") >= 44
    tiles.first.tap()
    phone.expect(phone.page.locator("#large")).to_be_visible()
    assert phone.value("document.documentElement.scrollWidth") == 390


def test_dark_follows_the_system_and_the_button_overrules_it(visit: Visit) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = visit.value(ground)
    visit.page.emulate_media(color_scheme="dark")
    dark = visit.value(ground)
    assert dark != light
    visit.page.click("#theme")
    assert visit.value(ground) == light
    visit.page.reload()
    visit.open()
    assert visit.value(ground) == light  # remembered


def test_settings_are_shown_as_the_server_describes_them(visit: Visit) -> None:
    fields = Sample.model_fields
    names = visit.value("[...document.querySelectorAll('#sampling input')].map(input => input.name)")
    assert names == ["temperature", "top_k", "top_p", "allow_colors", "forbid_colors"]
    for name in names:
        label = visit.page.locator(f"#sampling label:has([name={name}])")
        visit.expect(label).to_contain_text(fields[name].description)


@pytest.mark.parametrize(("height", "width"), [(24, 16), (10, 30)])
def test_pictures_that_are_not_square(browser: Any, tmp_path: Path, height: int, width: int) -> None:
    model = lively(nextpixel.ImageGPTConfig(layers=2, width=32, heads=4, side=(height, width), colors=12))
    model.palette = nextpixel.Palette(np.random.default_rng(0).uniform(-1, 1, (12, 3)))
    nextpixel.save(model, tmp_path / "model")
    with serve("--model", str(tmp_path / "model")) as address:
        visit = Visit(browser, address).open()
        visit.expect(visit.page.locator("#facts")).to_contain_text(f"{width} × {height} pixels")
        visit.set(kept=height - 3)
        given = pixels(visit.value("document.getElementById('picture').toDataURL()"))
        assert given.size == (width, height)
        for url, whole in zip(visit.draw(), nextpixel.complete(model, CAT, keep=1 - 3 / height, n=2, speed="exact")):
            assert pixels(url).tobytes() == whole.tobytes()
            assert pixels(url).crop((0, 0, width, height - 3)) == given.crop((0, 0, width, height - 3))
        for selector in ("#stage", ".tile"):
            box = visit.page.locator(selector).first.bounding_box()
            assert box and box["width"] / width == pytest.approx(box["height"] / height, rel=1e-3)
            assert selector == ".tile" or box["width"] % width == 0
        visit.page.click("#surprise")
        visit.expect(visit.page.locator("#heat")).to_be_visible()
        assert pixels(visit.value("document.getElementById('heat').toDataURL()")).size == (width, height)
        visit.page.locator(".tile").first.click()
        zoom = 1024 // max(height, width)
        for link, times in (("#download", 1), ("#download-large", zoom)):
            with visit.page.expect_download() as coming:
                visit.page.click(link)
            coming.value.save_as(tmp_path / "got.png")
            with Image.open(tmp_path / "got.png") as got:
                assert got.size == (width * times, height * times)
        visit.page.keyboard.press("Escape")
        for url, whole in zip(visit.draw("#sample"), nextpixel.sample(model, n=2, speed="exact"), strict=True):
            assert pixels(url).tobytes() == whole.tobytes()
        visit.close()


def test_a_model_of_patches(browser: Any, tmp_path: Path) -> None:
    model = lively(nextpixel.ImageGPTConfig(layers=2, width=32, heads=4, side=(4, 3), colors=12))
    model.tokenizer = Patches(np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8))
    nextpixel.save(model, tmp_path / "model")
    with serve("--model", str(tmp_path / "model"), "--max-completions", "4") as address:
        visit = Visit(browser, address).open()
        assert visit.page.input_value("#n") == "4"
        visit.expect(visit.page.locator("#facts")).to_contain_text("3 × 4, of 12 kinds")
        visit.expect(visit.page.locator("#limits")).to_contain_text("patches of 4 × 4 pixels, of 12 kinds")
        visit.expect(visit.page.locator("#sees")).to_have_text("12 × 16 pixels")
        for key, kept in (("Home", 0), ("ArrowDown", 4), ("End", 12), ("ArrowUp", 8)):  # whole patches
            visit.page.locator("#line").press(key)
            assert visit.rows_kept == kept
        visit.page.click("summary")
        visit.expect(visit.page.locator("#temperature")).to_be_visible()
        visit.expect(visit.page.locator("#allow-colors")).to_be_hidden()
        visit.page.fill("#n", "2")
        for url, whole in zip(visit.draw(), nextpixel.complete(model, CAT, n=2, speed="exact"), strict=True):
            assert pixels(url).tobytes() == whole.tobytes()
        visit.close()


def test_captions_with_suggestions_and_guidance(browser: Any, tmp_path: Path) -> None:
    model = with_words(nextpixel.ImageGPTConfig(layers=2, width=32, heads=4, side=16, colors=12), torch.float32)
    nextpixel.save(model, tmp_path / "model")
    with serve("--model", str(tmp_path / "model"), "--model", "embedded") as address:
        visit = Visit(browser, address).open()
        visit.set(kept=8)
        plain = visit.draw("#sample")
        visit.page.fill("#caption", "long r")
        offered = "[...document.querySelectorAll('#words option')].map(option => option.value)"
        assert visit.value(offered) == ["long red"]
        visit.page.fill("#caption", "long red hair, g")
        assert visit.value(offered) == ["long red hair, glasses", "long red hair, green"]
        visit.page.fill("#caption", "long red hair, glasses")
        visit.page.fill("#guidance", "2.5")
        told = visit.draw("#sample")
        wanted = nextpixel.sample(model, n=2, caption="long red hair, glasses", guidance=2.5, speed="exact")
        for url, other, whole in zip(told, plain, wanted, strict=True):
            assert pixels(url).tobytes() == whole.tobytes() and url != other
        visit.page.locator(".tile").first.click()
        visit.page.keyboard.press("Escape")
        visit.expect(visit.page.locator("#command")).to_contain_text(
            "--caption 'long red hair, glasses' --guidance 2.5"
        )
        visit.page.fill("#caption", "zebra")
        visit.expected = "422|400"
        visit.page.click("#sample")
        visit.expect(visit.page.locator("#draw-error")).to_contain_text("words that the model knows, got 'zebra'")
        visit.page.fill("#guidance", "-5")
        visit.page.select_option("#model", "embedded")
        visit.expect(visit.page.locator("#captioned")).to_be_hidden()
        visit.expect(visit.page.locator("#command")).not_to_contain_text("zebra")
        visit.draw("#sample")  # whatever the hidden guidance is
        visit.close()


def test_facts_and_limitations_of_the_model(visit: Visit) -> None:
    visit.expect(visit.page.locator("#facts")).to_contain_text("CIFAR-10")
    visit.expect(visit.page.locator("#limits")).to_contain_text("32 × 32 pixels")
    visit.expect(visit.page.locator("#limits")).to_contain_text("512 colours")


def test_the_model_of_faces_is_offered_no_photographs(browser: Any) -> None:
    with serve("--model", "faces") as address:
        visit = Visit(browser, address)
        visit.page.goto(address)
        visit.expect(visit.page.locator("#limits")).to_contain_text("they are not resized")
        visit.expect(visit.page.locator("#thumbs")).to_be_hidden()
        visit.expect(visit.page.locator("#picture-error")).to_be_empty()
        visit.close()


def test_another_model_takes_the_picture_that_is_being_read_and_no_old_surprise(browser: Any) -> None:
    with serve("--model", "embedded", "--model", "faces") as address:
        visit = Visit(browser, address)
        visit.expected = "status of 422"
        visit.open()
        visit.page.click("#surprise")
        visit.expect(visit.page.locator("#heat")).to_be_visible()
        visit.page.select_option("#model", "faces")  # which takes small pictures only
        visit.expect(visit.page.locator("#picture-error")).to_contain_text("16 x 16")
        visit.expect(visit.page.locator("#heat")).to_be_hidden()
        assert visit.value("state.seen === null && state.heat === null")
        visit.page.click("#surprise")
        visit.expect(visit.page.locator("#surprise-error")).to_have_text("Choose a picture first.")
        held: list[Any] = []
        visit.page.route("**/v1/encode", lambda route: held.append(route))
        visit.page.select_option("#model", "embedded")
        visit.page.wait_for_function("reading !== null")
        visit.value("see({ ...state.picture, name: 'second' }), 0")  # while the first is being read
        visit.value("showModel(), 0")
        visit.page.wait_for_timeout(300)
        for route in held:
            route.continue_()
        visit.expect(visit.page.locator("#picture")).to_have_attribute("aria-label", "second, as the model sees it")
        visit.close()


def test_half_transparent_pixels_are_not_drawn_twice(browser: Any, tmp_path: Path) -> None:
    """The whole picture, at the end, takes the place of its rows."""
    model = lively(nextpixel.ImageGPTConfig(layers=2, width=32, heads=4, side=4, colors=2))
    model.tokenizer = nextpixel.ExactPalette([(200, 0, 0, 128), (0, 0, 250, 128)])
    model.fit = "place"
    nextpixel.save(model, tmp_path / "model")
    with serve("--model", str(tmp_path / "model")) as address:
        visit = Visit(browser, address)
        visit.page.goto(address)
        visit.expect(visit.page.locator("#limits")).to_contain_text("they are not resized")
        for url in visit.draw("#sample"):
            with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as drawn:
                assert np.unique(np.asarray(drawn.convert("RGBA"))[..., 3]).tolist() == [128]
        visit.close()
