"""The benchmarks of pixel art, with a design of faces made by hand instead of npm's packages."""

import importlib
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import nextpixel

ROOT = Path(__file__).parents[1]
NAMES = ("fetch_datasets", "faces", "adherence", "sprite_sheet", "emoji")

# rows and columns of each variant (first, last), by DiceBear's names
BOXES = {
    "hair": {
        "long01": [(0, 3, 2, 13), (4, 12, 1, 2), (4, 12, 13, 14)],
        "short01": [(0, 3, 3, 12)],
        "short02": [(0, 1, 4, 11)],
        "long02": [(0, 4, 2, 13), (5, 9, 2, 2)],
    },
    "hat": {"variant01": [(0, 2, 1, 14)]},
    "glasses": {"light01": [(5, 5, 3, 12), (6, 6, 3, 3)], "dark01": [(5, 5, 3, 12), (6, 6, 3, 3)]},
    "mouth": {"happy03": [(9, 9, 5, 6), (8, 8, 5, 5)], "sad01": [(8, 8, 5, 6), (9, 9, 5, 5)], "sad04": [(9, 9, 5, 7)]},
    "beard": {"variant01": [(9, 11, 4, 11)]},
    "clothing": {"variant01": [(14, 15, 2, 13)], "variant02": [(13, 15, 2, 13)]},
    "accessories": {"variant01": [(7, 8, 2, 2), (7, 8, 13, 13)]},
    "eyes": {"variant01": [(6, 6, 5, 10)]},
}
LENSES = (6, 7, 4, 11)


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in NAMES:
            sys.modules.pop(name, None)


def box(alpha, corners, value=255):
    top, bottom, left, right = corners
    alpha[top : bottom + 1, left : right + 1] = value


def alphas():
    made = {}
    for part, variants in BOXES.items():
        made[part] = {}
        for name, boxes in variants.items():
            alpha = np.zeros((16, 16), int)
            if part == "glasses":
                box(alpha, LENSES, 77)
            for corners in boxes:
                box(alpha, corners)
            made[part][name] = alpha.ravel().tolist()
    return made


def face(**changed):
    """The attributes of a face, as DiceBear tells them."""
    plain = {
        "hair": "short01",
        "clothing": "variant01",
        "eyes": "variant01",
        "mouth": "sad04",
        "hairColor": "#28150a",
        "skinColor": "#ffdbac",
        "clothingColor": "#03396c",
        "eyesColor": "#76778b",
        "mouthColor": "#de0f0d",
        "glassesColor": "#43677d",
        "hatColor": "#cc6192",
        "accessoriesColor": "#ffd700",
    }
    return plain | changed


def paint(faces, masks, attributes):
    """The picture of a face: lenses shade what they cover, a beard is a lighter hair colour."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    for part, variant in faces.variants(attributes).items():
        mask = masks[part][variant]
        if part == "lenses":
            pixels[mask, :3] = pixels[mask, :3] * 0.7 + (0 if variant.startswith("dark") else 76)
            continue
        value = attributes["hairColor" if part == "beard" else f"{faces.LAYERS[part]}Color"]
        color = np.array(list(bytes.fromhex(value[1:])))
        pixels[mask] = [*(color * 0.7 + 76 if part == "beard" else color).astype(int), 255]
    return pixels


EVERY = [
    face(hair=hair, mouth=mouth, hairColor=color, clothingColor=shirt, skinColor=skin, **parts)
    for hair, mouth, color, shirt, skin, parts in itertools.product(
        BOXES["hair"],
        BOXES["mouth"],
        ("#28150a", "#bd1700"),
        ("#03396c", "#00b159"),
        ("#ffdbac", "#8d5524"),
        (
            {},
            {"hat": "variant01"},
            {"glasses": "light01", "accessories": "variant01"},
            {"glasses": "dark01", "beard": "variant01", "hat": "variant01", "glassesColor": "#a04b5d"},
        ),
    )
]


@pytest.fixture(scope="module")
def drawn(scripts):
    """(design, pictures, captions) of all faces of EVERY."""
    faces = scripts.faces
    masks = faces.masks_of(alphas())
    pictures = [paint(faces, masks, attributes) for attributes in EVERY]
    colors = faces.colors_of(list(zip(pictures, EVERY)), masks)
    design = faces.Design(masks, faces.kinds_of(masks), colors)
    captions = [faces.caption(faces.tags(*pair, design)) for pair in zip(pictures, EVERY)]
    return design, np.stack(pictures), captions


def caption_of(scripts, drawn, **changed):
    design = drawn[0]
    attributes = face(**changed)
    return scripts.faces.caption(
        scripts.faces.tags(paint(scripts.faces, design.masks, attributes), attributes, design)
    ).split(", ")


def test_a_caption_names_the_visible_parts_in_plain_words(scripts, drawn):
    assert caption_of(
        scripts, drawn, hair="long01", mouth="happy03", glasses="dark01", accessories="variant01", beard="variant01"
    ) == ["long black hair", "light skin", "happy mouth", "blue sunglasses", "beard", "navy shirt"]
    assert caption_of(scripts, drawn, glasses="light01", accessories="variant01", mouth="sad01") == [
        "short black hair",
        "light skin",
        "sad mouth",
        "blue glasses",
        "gold earrings",
        "navy shirt",
    ]


@pytest.mark.parametrize(
    ("hair", "tag"),
    [
        ("short02", None),  # the hat hides it
        ("short01", "short black hair"),
        ("long01", "long black hair"),
        ("long02", "black hair"),  # ends beside the chin
    ],
)
def test_hair_under_a_hat_is_named_as_far_as_it_shows(scripts, drawn, hair, tag):
    tags = caption_of(scripts, drawn, hair=hair, hat="variant01")
    assert [its for its in tags if its.endswith(" hair")] == ([tag] if tag else [])
    assert "pink hat" in tags


def test_hair_that_two_variants_show_alike_under_a_hat_has_no_length(scripts, drawn):
    design = drawn[0]
    longer = design.masks["hair"]["short01"].copy()
    longer[0, 1] = True  # differs only under the hat
    masks = design.masks | {"hair": design.masks["hair"] | {"long03": longer}}
    kinds = design.kinds | {"hair": design.kinds["hair"] | {"long03": frozenset({"long"})}}
    wider = scripts.faces.Design(masks, kinds, design.colors)
    attributes = face(hat="variant01")
    tags = scripts.faces.tags(paint(scripts.faces, masks, attributes), attributes, wider)
    assert tags[0] == ["black", "hair"]


def test_a_beard_in_the_colour_of_the_skin_is_not_named(scripts, drawn):
    design, attributes = drawn[0], face(beard="variant01")
    pixels = paint(scripts.faces, design.masks, attributes)
    assert ["beard"] in scripts.faces.tags(pixels, attributes, design)
    shown = scripts.faces.visible(design.masks, attributes)
    pixels[shown["beard"]] = [255, 219, 172 + 31, 255]
    assert ["beard"] not in scripts.faces.tags(pixels, attributes, design)


def test_adjectives_are_left_out_at_the_stated_rate_and_empty_tags_go(scripts):
    rng = np.random.default_rng(0)
    tags = [["red", "hair"], ["beard"], ["blue", "glasses"]]
    made = [scripts.faces.shortened(tags, rng) for _ in range(5_000)]
    assert all(["beard"] in kept and ["hair"] not in kept for kept in made)
    without = sum(["glasses"] in kept for kept in made)
    assert sum(["red", "hair"] not in kept for kept in made) == pytest.approx(500, abs=100)
    assert without == pytest.approx(500, abs=100)


def test_a_design_is_read_as_it_was_written(scripts, drawn, tmp_path):
    design = drawn[0]
    design.write(tmp_path / "design.json")
    read = scripts.faces.Design.read(tmp_path / "design.json")
    assert read.kinds == design.kinds
    assert read.colors == design.colors
    for part, variants in design.masks.items():
        assert {name: mask.tolist() for name, mask in read.masks[part].items()} == {
            name: mask.tolist() for name, mask in variants.items()
        }


def test_real_pictures_show_all_that_their_captions_state(scripts, drawn):
    design, pictures, captions = drawn
    shares = scripts.adherence.adherence(pictures, captions, design)
    assert {kind: share.right / share.of for kind, share in shares.items()} == dict.fromkeys(shares, 1.0)
    assert set(shares) == {
        "beard",
        "earrings",
        "earrings colour",
        "glasses",
        "glasses colour",
        "glasses lenses",
        "hair colour",
        "hair length",
        "hat",
        "hat colour",
        "mouth mood",
        "shirt colour",
        "skin colour",
        "stated",
        "tags",
        "captions",
    }


@pytest.mark.parametrize(
    ("tag", "wrong"),
    [
        ("red hair", {"hair colour"}),
        ("long black hair", {"hair length"}),
        ("long red hair", {"hair length", "hair colour"}),
        ("happy mouth", {"mouth mood"}),
        ("sad mouth", {"mouth mood"}),
        ("green shirt", {"shirt colour"}),
        ("dark skin", {"skin colour"}),
        ("blue glasses", {"glasses lenses"}),
        ("red sunglasses", {"glasses colour"}),
        ("blue sunglasses", set()),
        ("hat", {"hat"}),
        ("pink hat", {"hat", "hat colour"}),
        ("gold earrings", {"earrings", "earrings colour"}),
        ("beard", {"beard"}),
        ("short black hair", set()),
    ],
)
def test_a_wrong_tag_is_found_wrong_in_that_only(scripts, drawn, tag, wrong):
    design = drawn[0]
    pixels = paint(scripts.faces, design.masks, face(glasses="dark01"))
    checks = scripts.adherence.check_tag(tag, scripts.adherence.read_face(pixels, design))
    assert {kind for kind, holds in checks.items() if not holds} == wrong
    assert checks


def test_noise_in_the_right_colours_is_no_face(scripts, drawn):
    design, pictures, captions = drawn
    noise = pictures.reshape(len(pictures), -1, 4).copy()
    np.random.default_rng(0).permuted(noise.view(np.uint32), axis=1, out=noise.view(np.uint32))
    shares = scripts.adherence.adherence(noise.reshape(pictures.shape), captions, design)
    assert shares["stated"].right / shares["stated"].of < 0.02


def test_wilson_interval(scripts):
    low, high = scripts.adherence.Share(45, 50).interval()  # Newcombe 1998's formula, worked by hand
    assert (low, high) == (pytest.approx(0.7864, abs=1e-4), pytest.approx(0.9565, abs=1e-4))
    assert scripts.adherence.Share(10, 10).interval() == (pytest.approx(0.7225, abs=1e-4), 1.0)


def test_short_captions(scripts):
    adherence, rng = scripts.adherence, np.random.default_rng(0)
    full = "long red hair, dark skin, beard, pink hat, green shirt"
    kinds = adherence.make_captions([full] * 200, 100, rng, pair=False)
    assert {name: len(its) for name, its in kinds.items()} == {"full": 100, "1 tag": 100, "2 tags": 100, "3 tags": 100}
    assert kinds["full"] == [full] * 100
    for count, name in enumerate(("1 tag", "2 tags", "3 tags"), start=1):
        for caption in kinds[name]:
            assert len(set(caption.split(", "))) == count
            assert set(caption.split(", ")) <= set(full.split(", "))
    assert len(set(kinds["3 tags"])) > 40  # of 60 in order
    pairs = adherence.make_captions([full] * 100, 100, rng, pair=True)
    assert set(pairs["2 tags"]) == {"long red hair, green shirt", "green shirt, long red hair"}
    assert all({"long red hair", "green shirt"} < set(caption.split(", ")) for caption in pairs["3 tags"])


def test_shuffled_gives_every_picture_the_caption_of_another(scripts):
    captions = [str(number) for number in range(50)]
    given = scripts.adherence.shuffled(captions, np.random.default_rng(0))
    assert sorted(given) == sorted(captions)
    assert all(mine != other for mine, other in zip(captions, given))


def test_copies_are_counted_to_the_last_pixel(scripts):
    training = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 4), dtype=np.uint8)
    near = training[:1].copy()
    near[0, 15, 15, 3] ^= 1
    assert scripts.adherence.copies(np.concatenate([training[2:4], near]), training) == 2


def test_the_command_measures_real_pictures(scripts, drawn, tmp_path, capsys):
    design, pictures, captions = drawn
    design.write(tmp_path / "design.json")
    rows = list(zip(pictures, captions, EVERY))
    scripts.faces.write_parquet(tmp_path / "test.parquet", rows[::8])
    scripts.faces.write_parquet(tmp_path / "test_pairs.parquet", rows[:20])
    assert scripts.adherence.main([str(tmp_path), "--out", str(tmp_path / "out.json")]) == 0
    made = json.loads((tmp_path / "out.json").read_text())["adherence"]
    assert [row["pictures"] for row in made] == [
        "held-in: real",
        "held-in: real, shuffled captions",
        "held-out pairs: real",
        "held-out pairs: real, shuffled captions",
    ]
    assert made[0]["shares"]["stated"]["share"] == 1
    assert made[1]["shares"]["stated"]["share"] < 0.7
    assert "stated 100.0" in capsys.readouterr().out


def test_a_missing_set_is_one_sentence(scripts, tmp_path, capsys):
    assert scripts.adherence.main([str(tmp_path)]) == 2
    assert "design.json: make the set first" in capsys.readouterr().err


@pytest.mark.data
def test_the_ceiling_on_the_real_set(scripts):
    folder = ROOT / "data" / "faces"
    if not folder.is_dir():
        pytest.skip("data/faces is absent: python benchmarks/faces.py")
    adherence = scripts.adherence
    design = scripts.faces.Design.read(folder / "design.json")
    pictures, captions = adherence.read_set(folder / "test.parquet")
    shares = adherence.adherence(pictures[:500], captions[:500], design)
    assert shares["captions"].right == 500
    floor = adherence.adherence(pictures[:500], adherence.shuffled(captions[:500], np.random.default_rng(0)), design)
    assert floor["captions"].right < 10


def test_the_command_measures_a_model(scripts, drawn, tmp_path, monkeypatch):
    """A stand-in for a model that draws a real picture of the caption at guidance 2, and another one at 1."""
    design, pictures, captions = drawn
    design.write(tmp_path / "design.json")
    rows = list(zip(pictures, captions, EVERY))
    for split, its in {"test": rows[::8], "test_pairs": rows[:20], "train": rows}.items():
        scripts.faces.write_parquet(tmp_path / f"{split}.parquet", its)
    by_caption = {frozenset(caption.split(", ")): picture for caption, picture in zip(captions, pictures)}

    def sample(model, n, *, caption, guidance, seed):
        assert (model, n) == ("the model", 1)
        wanted = [frozenset(its.split(", ")) for its in caption]
        chosen = [next(p for tags, p in by_caption.items() if (its <= tags) == (guidance == 2)) for its in wanted]
        return [scripts.adherence.Image.fromarray(picture) for picture in chosen]

    def nll(model, images, *, captions=None):
        assert captions is None or len(images) == len(captions)
        return np.full(len(images), 0.2 if captions else 0.5, np.float32)

    monkeypatch.setattr(nextpixel, "load", lambda name: f"the {name}")
    monkeypatch.setattr(nextpixel, "sample", sample)
    monkeypatch.setattr(nextpixel, "nll", nll)
    out = tmp_path / "out.json"
    arguments = ["--model", "model", "--captions", "10", "--guidance", "1", "2", "--out", str(out)]
    assert scripts.adherence.main([str(tmp_path), *arguments]) == 0
    made = json.loads(out.read_text())
    shares = {row["pictures"]: row["shares"]["captions"]["share"] for row in made["adherence"]}
    lengths = {"held-in": ("full", "1 tag", "2 tags", "3 tags"), "held-out pairs": ("full", "2 tags", "3 tags")}
    for name, its in lengths.items():
        for length in its:
            assert shares[f"{name}: {length}, guidance 2"] == 1
            assert shares[f"{name}: {length}, guidance 1"] < 0.5
    assert made["copies"] == {"drawn": 2 * 7 * 10, "copies": 2 * 7 * 10}
    assert made["nats"]["held-in"] == pytest.approx({"right": 0.2, "shuffled": 0.2, "no": 0.5})


def test_a_sheet_has_its_sprites_in_order(scripts, tmp_path, monkeypatch):
    icons = {name: np.full((24, 24, 4), i + 1, np.uint8) for i, name in enumerate(f"icon-{n:02}" for n in range(40))}
    monkeypatch.setattr(scripts.sprite_sheet, "draw", lambda: icons)
    assert scripts.sprite_sheet.main(["--out", str(tmp_path)]) == 0
    sheet = np.asarray(scripts.adherence.Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (48, 768, 4)
    header, *rows = (tmp_path / "sheet.csv").read_text().splitlines()
    assert header == "file,row,column,caption"
    assert rows[33] == "sheet.png,1,1,icon 33"
    for line in rows:
        _, row, column, caption = line.split(",")
        cell = sheet[int(row) * 24 :, int(column) * 24 :][:24, :24]
        assert (cell == icons[caption.replace(" ", "-")]).all()
        assert (
            np.asarray(scripts.adherence.Image.open(tmp_path / "icons" / f"{caption.replace(' ', '-')}.png")) == cell
        ).all()
    assert not sheet[24:, 8 * 24 :].any()  # the cells that are left over


@pytest.mark.parametrize(
    ("label", "group", "caption"),
    [
        ("woman: light skin tone, red hair", "person", "woman, light skin tone, red hair, person"),
        ("flag: Côte d’Ivoire", "country-flag", "flag, côte d’ivoire, country flag"),
        ("person", "person", "person"),
        ("keycap: #", "keycap", "keycap"),
        ("Japanese “open for business” button", "alphanum", "japanese open for business button, alphanum"),
    ],
)
def test_an_emojis_caption(scripts, label, group, caption):
    assert scripts.emoji.caption(label, group) == caption


def test_an_emojis_file(scripts):
    names = dict.fromkeys(["23-20e3", "1f636-200d-1f32b-fe0f", "263a"])
    assert scripts.emoji.file_name("0023-FE0F-20E3", names) == "23-20e3"
    assert scripts.emoji.file_name("1F636-200D-1F32B-FE0F", names) == "1f636-200d-1f32b-fe0f"
    assert scripts.emoji.file_name("263A-FE0F", names) == "263a"
    assert scripts.emoji.file_name("1F600", names) is None


def test_pictures_with_the_most_colours_of_their_own_go_first(scripts, monkeypatch):
    monkeypatch.setattr(scripts.emoji, "COLORS", 3)
    pictures = [np.zeros((2, 2, 4), np.uint8) for _ in range(4)]
    pictures[1][0, :, 0] = 5, 6  # two colours of its own
    pictures[2][0, 0, 1] = 7  # shared with the next one
    pictures[3][0, :, 1] = 7, 8
    assert scripts.emoji.with_few_colors(pictures) == [0, 2, 3]
    monkeypatch.setattr(scripts.emoji, "COLORS", 5)
    assert scripts.emoji.with_few_colors(pictures) == [0, 1, 2, 3]
