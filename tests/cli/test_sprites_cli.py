"""A folder of sprites from files to pictures and back: every verb with a model of exact colours, and their mistakes."""

import base64
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import nextpixel
from nextpixel import ExactPalette, ImageGPT
from nextpixel.checkpoints import Run
from nextpixel.cli import main
from nextpixel.config import Levels, ResNetConfig
from nextpixel.evaluation.naming import word_probabilities
from nextpixel.images import read_palette_file
from nextpixel.images.sources import load_images
from nextpixel.network.resnet import ResNet
from nextpixel.representation.probing import LinearProbe
from nextpixel.tokens.colors import hex_color
from nextpixel.training import convnet

H, W = 6, 5
CLEAR, GLASS = (0, 0, 0, 0), (10, 200, 10, 120)
REDS = [(90, 5, 5, 255), (160, 20, 10, 255), (240, 60, 50, 255)]
BLUES = [(5, 10, 90, 255), (20, 40, 170, 255), (60, 90, 240, 255)]
COLOURS = {CLEAR, GLASS, *REDS, *BLUES}
TINY = (
    "--side 6x5 --layers 1 --width 16 --heads 2 --batch-images 4 --steps 4 --sample-images 2 --device cpu --dtype fp32 "
)
TINY += "--compile off --threads 1 --checkpoint-every-steps 2 --evaluate-every-steps 2"


def sprite(seed: int, colours: list, size: tuple[int, int] = (H, W)) -> np.ndarray:
    """Opaque pixels of three colours with a transparent corner, and a glassy one."""
    image = np.array(colours, np.uint8)[np.random.default_rng(seed).integers(0, 3, size)]
    image[0, :2], image[-1, -1] = (7, 7, 7, 0), GLASS  # what is transparent may have any colour
    return image


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sprites in two class folders, and a run on them."""
    home = tmp_path_factory.mktemp("home")
    for kind, colours in (("red", REDS), ("blue", BLUES)):
        (home / "sprites" / kind).mkdir(parents=True)
        for i in range(12):
            pixels = sprite(i + 100 * (kind == "red"), colours, (H, W) if i % 3 else (4, 4))
            Image.fromarray(pixels).save(home / "sprites" / kind / f"{kind}_{i:02d}.png")
        (home / "others" / kind).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(sprite(200 + i, colours)).save(home / "others" / kind / f"{i}.png")
    line = f"pretrain {home / 'sprites'} --palette exact {TINY} --augment shift --out {home / 'run'}"
    assert main(line.split()) == 0
    return home


@pytest.fixture
def there(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sprites").symlink_to(home / "sprites")
    (tmp_path / "others").symlink_to(home / "others")
    (tmp_path / "run").symlink_to(home / "run")
    return tmp_path


@pytest.fixture
def model(home: Path) -> ImageGPT:
    return nextpixel.load(home / "run")


def colours_of(pixels: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in pixels.reshape(-1, pixels.shape[-1]).tolist()}


def run_json(line: str, capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    assert main([*line.split(), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_model_has_exactly_the_colours_of_the_sprites(home: Path, model: ImageGPT) -> None:
    assert isinstance(model.tokenizer, ExactPalette) and model.fit == "place" and model.size == (H, W)
    assert colours_of(model.tokenizer.rgba) == COLOURS
    pictures = load_images(home / "sprites", model.size, fit=model.fit, levels=model.levels)
    assert pictures.shape == (24, H, W, 4) and colours_of(pictures) == COLOURS
    tokens = model.tokenizer.encode(pictures)
    assert np.array_equal(model.tokenizer.decode(tokens, W), pictures)
    kept = model.training_pictures
    assert kept is not None and len(kept.tokens) + len(kept.held_out) == 24
    assert kept.distances(tokens.numpy())[0].min() == 0


def test_the_side_is_that_of_the_pictures(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("palette sprites --exact".split()) == 0
    err = capsys.readouterr().err
    assert "Side 6x5, by the largest of 24 pictures" in err and "--side 6x5 --out run" in err
    tiny = TINY.replace("--side 6x5 ", "")
    flops = []
    for given in ("", "--side 6x5 ", "--captions names --side 6x5 "):
        assert main(f"plan --images sprites --palette exact {tiny} {given}--device auto --json".split()) == 0
        flops.append(json.loads(capsys.readouterr().out)["flops_per_image"])
    assert flops[0] == flops[1] < flops[2]  # the words of a caption stand before the picture
    assert main(f"pretrain sprites --palette exact {tiny} --steps 1 --augment wrap --out own".split()) == 0
    assert "Side 6x5, by the largest of 24 pictures" in capsys.readouterr().err
    assert nextpixel.load("own").size == (6, 5)
    assert main("sample --model own --tile -n 1".split()) == 0
    assert "--augment wrap" not in capsys.readouterr().err
    assert main("sample --model run --tile -n 1".split()) == 0
    assert "The model was trained without --augment wrap: expect seams" in capsys.readouterr().err


def test_a_run_is_resumed_with_its_palette(home: Path, tmp_path: Path) -> None:
    line = f"pretrain {home / 'sprites'} --palette exact {TINY} --steps 2 --out {tmp_path / 'run'}"
    assert main(line.split()) == 0
    before = nextpixel.load(tmp_path / "run")
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 0
    after = nextpixel.load(tmp_path / "run")
    assert before.tokenizer.hash == after.tokenizer.hash and after.training_pictures is not None
    facts = Run(tmp_path / "run").facts()
    assert facts["config"]["palette"] == "exact" and facts["tokenizer"]["kind"] == "exact"


def test_a_folder_called_exact_does_not_change_the_word(there: Path) -> None:
    Path("exact").mkdir()
    assert main(f"pretrain sprites --palette exact {TINY} --steps 1 --out other".split()) == 0
    assert Run(Path("other")).facts()["config"]["palette"] == "exact"


def test_sampling_gives_those_colours_alone(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json("sample --model run -n 20 --each all --sheet s.png", capsys)
    pixels = np.stack([np.asarray(Image.open(path).convert("RGBA")) for path in found["each"]])
    assert pixels.shape == (20, H, W, 4) and colours_of(pixels) <= COLOURS
    assert found["copies"].keys() >= {"drawn_exact", "held_out_within_3"}


def test_the_suggested_command_repeats_how_sheets_are_cut(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(sprite(0, REDS, (4, 6))).save("sheet.png")
    for cut, said in (("2", "2"), ("2x3", "2x3")):
        assert main(f"palette sheet.png --exact --slice {cut} --out cut{cut}.hex".split()) == 0, capsys.readouterr().err
        assert f"--slice {said} --out run" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".gpl", ".hex", ".pal", ".png", ".npy"])
def test_palettes_are_collected_and_trained_with(there: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(f"palette sprites --exact --side 6x5 --out p{suffix}", capsys)
    assert (found["colors"], found["with_transparency"]) == (len(COLOURS), 2)
    assert colours_of(read_palette_file(f"p{suffix}")) == COLOURS
    assert found["swatch"] == ("p.png" if suffix == ".png" else "p.swatch.png") and Path(found["swatch"]).is_file()
    assert main(f"pretrain sprites --palette p{suffix} {TINY} --steps 1 --out own".split()) == 0
    assert colours_of(nextpixel.load("own").tokenizer.rgba) == COLOURS
    assert "become its nearest" not in capsys.readouterr().err


def test_the_palette_of_a_sheet_and_of_an_enlarged_one(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = np.concatenate([np.concatenate([sprite(i, REDS), sprite(i, BLUES)], 1) for i in range(3)])
    for scale in (1, 2):
        Path(f"x{scale}").mkdir()
        Image.fromarray(sheet.repeat(scale, 0).repeat(scale, 1)).save(f"x{scale}/sheet.png")
        tiles = f"{H * scale}x{W * scale}"
        found = run_json(f"palette x{scale} --exact --side 6x5 --slice {tiles} --out p.gpl", capsys)
        assert found["colors"] == len(COLOURS) and colours_of(read_palette_file("p.gpl")) == COLOURS
        line = f"pretrain x{scale} --palette p.gpl {TINY} --slice {tiles} --steps 1 --out run{scale}"
        assert main(line.split()) == 0
    tokens = [nextpixel.load(f"run{scale}").training_pictures for scale in (1, 2)]
    assert tokens[0] is not None and tokens[1] is not None and np.array_equal(tokens[0].tokens, tokens[1].tokens)


def test_the_tiles_of_a_sheet_have_captions_of_their_own(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiles = [[sprite(10 * row + i, colours) for i, colours in enumerate([REDS, BLUES])] for row in range(6)]
    tiles[5][1][:] = 0  # empty, and without a row
    Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in tiles])).save("sheet.png")
    rows = [f"sheet.png,{row},{i},{word}" for row in range(6) for i, word in enumerate(["red", "blue"])]
    Path("sheet.csv").write_text("\n".join(["file,row,column,caption", *rows[:-1]]))
    line = f"pretrain sheet.png --slice 6x5 --captions sheet.csv --palette exact {TINY} --out run2"
    assert main(line.split()) == 0
    assert "Captions of 2 words; 0 of 11 pictures have none of them" in capsys.readouterr().err
    words = nextpixel.load("run2").words
    assert words is not None and words.shares is not None
    assert dict(zip(words.table, words.shares)) == {"red": 6 / 10, "blue": 4 / 10}  # one of the blue ones is held out
    found = run_json("evaluate sheet.png --slice 6x5 --captions sheet.csv --model run2", capsys)
    assert found["images"] == 11 and found["nats_per_pixel_without_captions"] is not None
    run2, captions = nextpixel.load("run2"), [*["red", "blue"] * 5, "red"]
    nats = nextpixel.nll(run2, "sheet.png", captions=captions)
    assert nats.shape == (11,) and found["nats_per_pixel"] == pytest.approx(nats.mean(), rel=1e-5)
    rows = run_json("score sheet.png --slice 6x5 --captions sheet.csv --model run2", capsys)["images"]
    scored = {row["file"]: row["nats_per_pixel"] for row in rows}
    assert [scored[f"sheet.png#{i // 2},{i % 2}"] for i in range(11)] == pytest.approx(nats, rel=1e-5)
    with Image.open("sheet.png") as sheet:
        sheet.resize((4 * W, 12 * H), Image.Resampling.NEAREST).save("large.png")
    squares = load_images("sheet.png", run2.size, fit=run2.fit, levels=run2.levels)
    expected = word_probabilities(run2, squares)
    for file, tile in (("sheet.png", "6x5"), ("large.png", "12x10")):  # squares are not fitted again
        found = run_json(f"predict run2 {file} --slice {tile} --words", capsys)["predictions"]
        told = [[row[word] for word in words.table] for row in found]
        assert np.allclose(told, expected, atol=1e-5), file


def test_a_probe_is_fitted_to_and_tested_on_frames_and_tiles(there: Path, model: ImageGPT) -> None:
    """Class folders with an animation each, and with a sheet each."""
    for seed, (kind, colours) in enumerate({"red": REDS, "blue": BLUES}.items()):
        frames = [sprite(10 * seed + i, colours) for i in range(6)]
        for folder in ("animated", "sheets"):
            (there / folder / kind).mkdir(parents=True)
        first, *rest = (Image.fromarray(frame) for frame in frames)
        first.save(there / "animated" / kind / "a.png", save_all=True, append_images=rest)
        Image.fromarray(np.concatenate(frames)).save(there / "sheets" / kind / "a.png")
    for folder, levels in (("animated", Levels()), ("sheets", Levels(slice=(H, W)))):
        model.levels = levels
        probe = LinearProbe(model, 1, pooling="mean").fit("sprites")
        found = probe.evaluate(folder)
        truth = np.repeat(["blue", "red"], 6)
        assert found.images == 12 and found.accuracy == (probe.predict(folder) == truth).mean() == probe.score(folder)
        assert LinearProbe(model, 1, pooling="mean").fit(folder).evaluate("sprites").images == 24


def test_every_verb_takes_labels_of_tiles_and_of_their_sheets(
    there: Path, model: ImageGPT, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sheets").mkdir()
    for name, kinds in (("mixed", [REDS, BLUES]), ("blue", [BLUES, BLUES])):
        tiles = [[sprite(300 + 10 * row + i, colours) for i, colours in enumerate(kinds)] for row in range(4)]
        Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in tiles])).save(f"sheets/{name}.png")
    rows = [f"mixed.png,{row},{i},{word}" for row in range(4) for i, word in enumerate(["red", "blue"])]
    Path("t.csv").write_text("\n".join(["file,row,column,label", *rows, "blue.png,,,blue"]))
    options = "--labels t.csv --slice 6x5"
    found = run_json(f"probe sheets {options} --test others --model run --layer 1 --no-baselines --out probed", capsys)
    assert found["classes"] == ["blue", "red"] and found["most_common_class"] == 0.5
    tiny = "--epochs 1 --batch-images 8 --device cpu --compile off --threads 1"
    assert main(f"finetune sheets {options} --model run {tiny} --out clf".split()) == 0
    clf, run = nextpixel.load("clf"), Run("clf")
    assert clf.config.classes == ("blue", "red") and run.arrays()["labels"].tolist() == [0] * 8 + [1, 0] * 4
    score = run_json(f"evaluate sheets {options} --model clf", capsys)["classification"]
    assert score["images"] == 16 and np.sum(score["confusion"], 1).tolist() == [12, 4]
    model.levels = Levels(slice=(6, 5))
    assert LinearProbe(model, layer=1).fit("sheets", "t.csv").classes_.tolist() == ["blue", "red"]


def test_a_palette_with_fewer_colours_is_said_to_change_pixels(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("few.hex").write_text("5a0505\na0140a\nf03c32\n")
    assert main(f"pretrain sprites --palette few.hex {TINY} --steps 1 --out few".split()) == 0
    err = capsys.readouterr().err
    assert "of the pixels have colours that" in err and "few.hex has not, and become its nearest" in err
    assert colours_of(nextpixel.load("few").tokenizer.rgba) == {CLEAR, *REDS}  # transparency is added
    share = err.partition(" of the pixels")[0].split()[-1]
    settings = TINY.replace("--layers 1 --width 16 --heads 2", "")
    assert main(f"pretrain sprites --init few {settings} --steps 1 --out more".split()) == 0
    assert f"{share} of the pixels have colours that {there / 'few'} has not" in capsys.readouterr().err


def test_completing_says_how_many_pixels_it_changed(
    there: Path, model: ImageGPT, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = sprite(1, REDS)
    pixels[2, :3] = (1, 2, 3, 255)
    pixels[5, 0] = (1, 2, 3, 255)  # not kept
    Image.fromarray(pixels).save("other.png")
    found = run_json("complete other.png --model run -n 2 --keep 0.5 --each all", capsys)
    assert found["changed_pixels"] == 3
    kept = np.asarray(Image.open(found["each"][0]).convert("RGBA"))[:3]
    expected = model.tokenizer.decode(model.tokenizer.encode(pixels[None]), W)[0, :3]
    assert np.array_equal(kept, expected)
    assert main("complete other.png --model run -n 1 --keep 0.5 --show --gif d.gif".split()) == 0
    assert "3 of 15 kept pixels have colours that the model lacks; the nearest replace them" in capsys.readouterr().err
    assert run_json("complete sprites --model run -n 1", capsys)["changed_pixels"] == 0


def test_variations_are_written_with_what_was_redrawn(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "vary sprites/red/red_01.png sprites/blue/blue_01.png --model run -n 3 --part bottom --strength 0.5"
    found = run_json(f"{line} --each all --sheet s.png --gif v.gif", capsys)
    assert [one["redrawn_pixels"] for one in found["pictures"]] == [[15] * 3] * 2 and found["changed_pixels"] == 0
    drawn = [np.asarray(Image.open(path).convert("RGBA")) for path in found["each"]]
    given = np.asarray(Image.open("sprites/red/red_01.png"))
    assert len(drawn) == 6 and all(
        np.array_equal(one[:3][one[:3, :, 3] > 0], given[:3][given[:3, :, 3] > 0]) for one in drawn[:3]
    )
    assert Path("v.gif").is_file() and Path("variations.png").is_file()
    blue = ",".join(hex_color(np.array(colour, np.uint8)) for colour in BLUES)
    found = run_json(f"vary sprites/red/red_01.png --model run -n 2 --strength 0 --colors {blue} --each blue", capsys)
    for path in found["each"]:
        assert colours_of(np.asarray(Image.open(path).convert("RGBA"))) <= {CLEAR, *BLUES}
    assert main("vary sprites --model run -n 1 --show".split()) == 0
    shown = capsys.readouterr()
    assert shown.out.endswith("variations.png\n") and "For other variations: --seed 1" in shown.err


def test_likelihoods_maps_and_features(there: Path, model: ImageGPT) -> None:
    assert np.isfinite(nextpixel.nll(model, "sprites")).all()
    assert nextpixel.surprise(model, "sprites").shape == (24, H, W)
    assert nextpixel.features(model, "sprites", 1).shape == (24, 16)
    [picture] = nextpixel.complete(model, "sprites/red/red_01.png", keep=0.5)
    assert picture.mode == "P" and picture.size == (W, H)


@pytest.mark.parametrize(
    "line",
    [
        "score sprites --model run --heatmap heat",
        "score sprites --model run --report page.html",
        "evaluate sprites --model run",
        "features sprites --model run --out f.npz",
        "probe sprites --test others --model run --layer 1 --out probed",
        "info run",
        "info run --html run.html",
        "convert run copy",
        "bench --model run --work encode",
        "finetune sprites --model run --epochs 1 --batch-images 8 --device cpu --compile off --threads 1 --out clf",
    ],
)
def test_every_verb_takes_such_a_model(there: Path, line: str) -> None:
    assert main(line.split()) == 0


def test_a_probe_of_pixel_art_is_compared_with_networks_of_opaque_pictures(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nextpixel.save(ResNet(ResNetConfig(blocks=1, side=(H, W))).eval(), "student")
    taken, fit = [], convnet.fit_convnet
    monkeypatch.setattr(convnet, "fit_convnet", lambda squares, *a, **k: taken.append(squares) or fit(squares, *a, **k))
    line = "probe sprites --test others --model run --layer 1 --against resnet20,student --trials 1 --epochs 1"
    found = run_json(f"{line} --no-baselines", capsys)
    methods = [row["method"] for row in found["results"] + found["peers"]]
    assert methods[2:] == ["student, probe", "resnet20, from scratch", "student, fine-tuned"]
    placed = load_images("sprites", (H, W), fit="place").astype(float)
    over_white = 255 + (placed[..., :3] - 255) * placed[..., 3:] / 255
    assert len(taken) == 2 and all(np.abs(squares - over_white).max() <= 1 for squares in taken)


def test_info_shows_the_palette(there: Path, model: ImageGPT, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json("info run", capsys)["palette"]
    assert found == {
        "kind": "exact",
        "tokens": 8,
        "with_transparency": 2,
        "rgba": [bytes(colour).hex() for colour in model.tokenizer.rgba],
    }
    assert main(["info", "run"]) == 0
    assert "rgba: 00000000 " in capsys.readouterr().out


MISTAKES = {
    f"pretrain sprites --palette exact {TINY} --fit crop --out no": ["--fit", "place for exact colours"],
    f"pretrain sprites --palette exact {TINY} --augment crop --out no": ["--augment", "crop"],
    f"pretrain sprites {TINY} --augment shift --out no": ["--augment: shift needs exact colours", "--palette exact"],
    f"pretrain sprites {TINY} --augment flip,recolour --out no": ["--augment: recolour needs exact colours"],
    f"pretrain sprites --palette none.gpl {TINY} --out no": ["none.gpl", "a GIMP palette", "no such file"],
    f"pretrain sprites --palette exact {TINY} --side 3 --out no": ["6 x 5", "3 x 3"],
    "score sprites --model run --fit crop": ["--fit", "place"],
    "sample --model run --slice 6x5": ["unknown option --slice"],
    "score others/red/0.png --slice 6x5": ["--slice: has no effect here, as it is for exact colours"],
    "score sprites --model run --bands 1,2,3": ["--bands: has no effect here, as it is for pictures that are resized"],
    f"pretrain sprites {TINY} --anchor bottom --out no": ["--anchor: has no effect here", "--palette exact"],
    f"pretrain sprites --palette exact {TINY} --words 5 --out no": ["--words: has no effect without --captions"],
    "evaluate run sprites": ["run: expected images, got the folder of a run; give it as --model"],
    f"pretrain run --palette exact {TINY} --out no": [
        "the folder of a run; give it as --model, or to pretrain as --init"
    ],
    "complete sprites/red/red_00.png --model run --mask tall.png": [
        "--mask: expected 4 x 4 pixels as red_00.png, or the model's 5 x 6, got 12 x 12"
    ],
    "complete many.png --model run": [
        "12 x 10 pixels do not fit on 6 x 5; cut a sheet with --slice, as in --slice 16x16"
    ],
    "palette sprites --exact --side 6x5 --out p.aco": ["--out", ".gpl, .hex, .pal, .png, .npy"],
    "palette sprites --exact --side 6x5 --colors 2000": ["--colors", "1024"],
    "complete sprites/red --model run --palette x": ["--palette"],
    "vary --model run": ["expected PICTURES, got nothing"],
    "vary sprites --model run --strength 2": ["--strength: expected a fraction of the pixels from 0 to 1, got 2"],
    "vary sprites --model run --strength 0": ["--strength: expected more than 0, or --colors to draw with"],
    "vary sprites --model run --part middle": ["--part", "random", "'middle'"],
    "vary sprites --model run --colors #123456": ["--colors: expected colours of the model", "near: #"],
    "vary sprites --model run --out v.jpg": ["--out", ".png"],
    "vary none.png --model run": ["none.png"],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_one_sentence(there: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (12, 12), 255).save("tall.png")
    Image.fromarray(np.concatenate([sprite(1, REDS, (H, 2 * W)), sprite(2, REDS, (H, 2 * W))])).save("many.png")
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert all(words in error for words in MISTAKES[line]), error
    assert "Traceback" not in error and not Path("no").exists()


def test_training_pictures_are_not_uploaded(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[str] = []

    class Hub:
        def create_repo(self, name: str, **_: object) -> None: ...

        def upload_folder(self, *, folder_path: Path, **_: object) -> str:
            sent.extend(path.name for path in folder_path.iterdir())
            return "address"

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Hub))
    assert main("push run ann/sprites".split()) == 0
    assert "model.safetensors" in sent and not any(name.startswith("training") for name in sent)
    assert "are not uploaded" in capsys.readouterr().err


def test_the_server_answers_with_transparency(home: Path, model: ImageGPT) -> None:
    pytest.importorskip("fastapi", reason="needs the extra `server`")
    from fastapi.testclient import TestClient

    from nextpixel.config import ServeConfig
    from nextpixel.server.app import create_app

    body = io.BytesIO()
    pixels = sprite(3, BLUES)
    Image.fromarray(pixels).save(body, "PNG")
    image = base64.b64encode(body.getvalue()).decode()
    with TestClient(create_app({"art": model}, ServeConfig(slots=2)), base_url="http://127.0.0.1:8000") as client:
        answers = [
            client.post("/v1/sample", json={"n": 2, "seed": 1}),
            client.post("/v1/complete", json={"image": image, "keep": 0.5, "n": 2}),
        ]
        scored = client.post("/v1/score", json={"image": image})
        both = []
        for name, size in (("image", (W + 2, H)), ("mask", (W, H + 1))):
            body = io.BytesIO()
            Image.fromarray(sprite(4, REDS, size[::-1])).save(body, "PNG")
            other = base64.b64encode(body.getvalue()).decode()
            both.append(client.post("/v1/complete", json={"image": image, name: other}))
    assert [answer.status_code for answer in both] == [422, 400]
    messages = [answer.json()["error"]["message"] for answer in both]
    assert messages[0].startswith("image: its 6 x 7 pixels do not fit on 6 x 5; expected a complete PNG")
    assert messages[1] == "mask: expected 5 x 6 pixels as the picture, or the model's 5 x 6, got 5 x 7"
    assert scored.status_code == 200
    for answer in answers:
        assert answer.status_code == 200, answer.text
        for text in answer.json()["images"]:
            shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
            assert shown.shape == (H, W, 4) and colours_of(shown) <= COLOURS
    assert np.array_equal(shown[:3], model.tokenizer.decode(model.tokenizer.encode(pixels[None]), W)[0, :3])
