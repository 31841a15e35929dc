"""Pretraining with captions: what is learnt, resumed and refused."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import COLORS, assert_same, on_call, photos, settings

import nextpixel
from nextpixel import ImageGPT, ImageGPTConfig, InputError, Palette
from nextpixel.checkpoints import Run
from nextpixel.cli import main
from nextpixel.config import PretrainConfig, SamplingConfig
from nextpixel.data.decoded import split_indices
from nextpixel.data.prepared import prepare
from nextpixel.drawing.sampling import draw
from nextpixel.evaluation.likelihood import image_nats
from nextpixel.evaluation.naming import caption_gains, tag_probabilities
from nextpixel.tokens.words import Words
from nextpixel.training import decisions, initial, pretraining
from nextpixel.training.loop import Interrupted

NAMES = ["red", "green", "blue", "dark"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures of one colour above and one below, which their names tell, and palette.npy."""
    folder = tmp_path_factory.mktemp("captioned")
    photos(folder)
    rng = np.random.default_rng(0)
    (folder / "in").mkdir()
    for i in range(48):
        top, bottom = rng.integers(0, 4, 2)
        square = np.repeat(COLORS[[top, bottom]], 2, axis=0)[:, None].repeat(4, 1)
        Image.fromarray(square).save(folder / "in" / f"{NAMES[top]} top, {NAMES[bottom]} bottom {i:02}.png")
    return folder


def without_shape(settings: dict[str, Any]) -> dict[str, Any]:
    """For a run that starts from a model."""
    return {name: value for name, value in settings.items() if name not in ("layers", "width", "heads", "palette")}


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    nextpixel.pretrain(place / "in", out=place / "run", **settings(place, captions="names", sample_images=4))
    return place / "run"


def test_a_run_has_two_numbers_and_samples_of_held_out_captions(run: Path) -> None:
    model, facts = nextpixel.load(run), Run(run).facts()
    assert model.words is not None and set(model.words.table) == {*NAMES, "top", "bottom"}
    assert model.words.table[:2] == ("bottom", "top") and model.words.shares == pytest.approx(facts["words"]["shares"])
    evaluations = [entry for entry in Run(run).read_log() if "validation_nats" in entry]
    assert [entry["step"] for entry in evaluations] == [6, 12]
    _, held = split_indices(48, 0.1, 0)
    paths = sorted((run.parent / "in").iterdir())
    squares = np.stack([np.asarray(Image.open(paths[i])) for i in held])
    captions = [paths[i].stem[:-3] for i in held]
    tags = model.words.encode(captions)
    last = nextpixel.load(Run(run).folder(12))
    told, plain = image_nats(last, squares, tags=tags), image_nats(last, squares)
    assert evaluations[-1]["validation_nats"] == pytest.approx(told.mean(), rel=1e-5)
    assert evaluations[-1]["validation_nats_without_caption"] == pytest.approx(plain.mean(), rel=1e-5)
    assert told.mean() != pytest.approx(plain.mean(), rel=1e-4)
    drawn = draw(last, None, caption=captions[:4], sampling=SamplingConfig(speed="exact")).images
    grid = np.asarray(Image.open(run / "samples" / "step_0000012.png"))
    corner = grid[: len(grid) // 2, : grid.shape[1] // 2]
    colors = {tuple(color) for color in drawn[0].reshape(-1, 3).tolist()}
    assert colors <= {tuple(color) for color in corner.reshape(-1, 3).tolist()}


def test_words_are_those_of_training_pictures(run: Path) -> None:
    words = nextpixel.load(run).words
    assert words is not None and words.shares is not None
    names = [path.stem for path in sorted((run.parent / "in").iterdir())]
    chosen, _ = split_indices(48, 0.1, 0)
    for word, share in zip(words.table, words.shares, strict=True):
        expected = sum(word in names[i].replace(",", "").split() for i in chosen) / len(chosen)
        assert share == pytest.approx(expected)


@pytest.fixture(scope="module")
def learned(place: Path) -> ImageGPT:
    more = settings(place, captions="names", steps=150, batch_images=16, evaluate_every_steps=150, preset="modern")
    return nextpixel.pretrain(place / "in", out=place / "learned", **more | {"micro_batch_images": 16, "layers": 2})


def test_captions_are_learnt(place: Path, learned: ImageGPT) -> None:
    found = [entry for entry in Run(place / "learned").read_log() if "validation_nats" in entry][-1]
    assert found["validation_nats"] < 0.5 * found["validation_nats_without_caption"]
    captions = [f"{top} top, {bottom} bottom" for top in NAMES for bottom in NAMES]
    images = draw(learned, None, n=4, caption=captions, sampling=SamplingConfig(guidance=1.5)).images
    drawn = images.reshape(16, 4, 4, 4, 3)
    right = np.stack([np.repeat(COLORS[[i // 4, i % 4]], 2, axis=0)[:, None].repeat(4, 1) for i in range(16)])
    assert (drawn == right[:, None]).all(-1).mean() > 0.8


def test_a_model_names_what_it_sees(place: Path, learned: ImageGPT) -> None:
    paths = sorted((place / "in").iterdir())
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    tags = [f"{name} top" for name in NAMES]
    named = tag_probabilities(caption_gains(learned, images, tags)).argmax(1)
    truth = np.array([tags.index(path.stem.split(",")[0]) for path in paths])
    assert (named == truth).mean() > 0.9


def test_predict_and_evaluate_with_words(
    place: Path, learned: ImageGPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, images = str(place / "learned"), str(place / "in")
    found = json.loads(printed(capsys, "predict", model, images, "--among", "red top, green top", "--json"))[
        "predictions"
    ]
    for row in found:
        assert row["red top"] + row["green top"] == pytest.approx(1, abs=1e-5)
        if row["file"].startswith(("red", "green")):
            assert (row["red top"] > 0.5) == row["file"].startswith("red top")
    out = tmp_path / "words.csv"
    lines = printed(capsys, "predict", model, images, "--words", "--out", str(out)).splitlines()
    assert len(lines) == 48 and out.read_text().splitlines()[0].split(",")[1:] == list(learned.words.table)
    told = json.loads(printed(capsys, "evaluate", images, "--captions", "names", "--model", model, "--json"))
    assert told["nats_per_pixel"] < 0.5 * told["nats_per_pixel_without_captions"]
    assert "without the captions" in printed(capsys, "evaluate", images, "--captions", "names", "--model", model)
    scored = json.loads(printed(capsys, "score", images, "--captions", "names", "--model", model, "--json"))
    assert scored["mean"] == pytest.approx(told["nats_per_pixel"], rel=1e-5)
    plain = json.loads(printed(capsys, "evaluate", images, "--model", model, "--json"))
    assert plain["nats_per_pixel"] == pytest.approx(told["nats_per_pixel_without_captions"])
    assert plain["nats_per_pixel_without_captions"] is None


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_run_resumed_is_the_run_uninterrupted(
    run: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_call(monkeypatch, "nextpixel.training.steps.cross_entropy", 6, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        nextpixel.pretrain(place / "in", out=tmp_path / "run", **settings(place, captions="names", sample_images=4))
    monkeypatch.undo()
    nextpixel.pretrain(resume=tmp_path / "run")
    assert_same(tmp_path / "run", run)


def test_prepared_folders_and_tables_train_the_same_network(run: Path, place: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"file_name": path.name, "text": path.stem[:-3]}) for path in (place / "in").iterdir()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    prepare(place / "in", tmp_path / "prepared", side=4, captions=str(tmp_path / "metadata.jsonl"))
    given = settings(place, captions=str(tmp_path / "metadata.jsonl"), sample_images=4)
    (tmp_path / "metadata.jsonl").rename(tmp_path / "gone")  # the folder has them
    nextpixel.pretrain(tmp_path / "prepared", out=tmp_path / "run", **given)
    assert_same(tmp_path / "run", run)


@pytest.mark.parametrize("more", [{"captions": "names"}, {"size": "auto"}], ids=["captions", "size"])
def test_a_folder_prepared_for_crops_is_used_in_place(
    more: dict[str, Any], place: Path, tmp_path: Path, cache: Path
) -> None:
    prepare(place / "in", tmp_path / "prepared", side=4, store_side=8, captions="names")
    config = PretrainConfig(side=4, palette=str(place / "palette.npy"), augment="crop", **more)
    initial.initial_model(config, tmp_path / "prepared", None, None)
    assert not (cache / "decoded").exists()


def test_validation_images_have_captions_of_their_own(place: Path, tmp_path: Path) -> None:
    given = settings(place, captions="names", words=5, validation=str(place / "in"), augment="crop")
    model = nextpixel.pretrain(place / "in", out=tmp_path / "run", **given)
    assert model.words is not None and len(model.words) == 5
    arrays = Run(tmp_path / "run").arrays()
    assert np.array_equal(arrays["tags"], arrays["validation_tags"]) and arrays["tags"].dtype == np.uint8
    assert arrays["tags"].shape == (48, 2, 2)


def test_a_run_goes_on_from_a_model_with_words(run: Path, place: Path, tmp_path: Path) -> None:
    base = {
        name: value for name, value in settings(place).items() if name not in ("layers", "width", "heads", "palette")
    }
    more = nextpixel.pretrain(place / "in", out=tmp_path / "more", init=str(run), captions="names", **base)
    first = nextpixel.load(run)
    assert more.words is not None and first.words is not None and more.words.table == first.words.table
    plain = nextpixel.pretrain(place / "in", out=tmp_path / "plain", init=str(run), **base)
    assert plain.words is not None and "validation_nats_without_caption" not in Run(tmp_path / "plain").read_log()[-1]
    uncaptioned = nextpixel.load(tmp_path / "plain")
    assert torch.isfinite(uncaptioned(torch.zeros(1, 16, dtype=torch.int64))).all()


def test_a_model_with_words_is_fine_tuned_and_probed_without_captions(run: Path, place: Path, tmp_path: Path) -> None:
    for path in (place / "in").iterdir():
        folder = tmp_path / "in" / path.stem.split()[0]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.name)
    tuned = nextpixel.finetune(
        nextpixel.load(run), str(tmp_path / "in"), out=tmp_path / "run", epochs=1, batch_images=8, augment="none",
        device="cpu", dtype="fp32", threads=1,
    )  # fmt: skip
    assert tuned.words is not None and tuned.config.classes == ("blue", "dark", "green", "red")
    assert nextpixel.features(tuned, str(tmp_path / "in")).shape == (48, 16)
    assert len(nextpixel.sample(tuned, 2, caption="red top", guidance=2)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": "caption"}, "captions: expected names, folders or a"),
        ({"captions": "folders"}, "expected labelled images"),
        ({"captions": "names", "objective": "masked"}, "captions: expected none, as a masked model has no prefix"),
        ({"captions": "names", "words": 0}, "words: expected at least 1, got 0"),
        ({"captions": "missing.csv"}, "no such file: .*missing.csv"),
        ({"captions": "names", "init": "faces", "words": 3}, "words: cannot be combined with `init`"),
    ],
)
def test_bad_captions_are_refused_before_any_work(
    place: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    given = settings(place, **changes)
    if "init" in changes:
        given = without_shape(given)
    with pytest.raises(InputError, match=message):
        nextpixel.pretrain(place / "in", out=tmp_path / "run", **given)
    assert not list(tmp_path.iterdir())


def test_a_model_without_words_learns_captions(run: Path, place: Path, tmp_path: Path) -> None:
    plain = nextpixel.pretrain(place / "in", out=tmp_path / "plain", **settings(place))
    assert plain.words is None
    base = without_shape(settings(place, captions="names"))
    more = nextpixel.pretrain(place / "in", out=tmp_path / "more", init=str(tmp_path / "plain"), **base)
    words = nextpixel.load(run).words
    assert more.words is not None and words is not None and more.words.table == words.table
    assert "validation_nats_without_caption" in Run(tmp_path / "more").read_log()[-1]
    assert len(nextpixel.sample(more, 2, caption="red top", guidance=2)) == 2
    few = nextpixel.pretrain(place / "in", out=tmp_path / "few", init=str(tmp_path / "plain"), words=2, **base)
    assert few.words is not None and few.words.table == words.table[:2]


@pytest.fixture
def bases(place: Path, tmp_path: Path) -> Path:
    """Models of the set's side: masked, of classes without words, and of words that no caption has."""
    shape = ImageGPTConfig(layers=1, width=16, heads=2, side=4, colors=8)
    shapes = {"masked": {"objective": "masked"}, "classes": {"classes": ("a", "b")}, "words": {"words": 2}}
    for name, changes in shapes.items():
        base = ImageGPT(replace(shape, **changes))
        base.palette = Palette.read(place / "palette.npy")
        base.words = Words(["zebra", "quagga"]) if name == "words" else None
        base.facts = {"continued_from": "older", "finetuned_on": "labelled", "labels_per_class": 5, "kept": 1}
        nextpixel.save(base, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("init", "changes", "message"),
    [
        ("masked", {}, r"^captions: expected none, as the model of `init` is masked"),
        ("classes", {"side": 8}, "^side: the model of `init` works at side 4, got 8"),
        ("classes", {"augment": "orient"}, "^augment: orient needs a start vector"),
        ("words", {}, r"^captions: expected words .* of `init` knows \(zebra, quagga\), got none in 48 captions"),
        ("words", {"words": 3}, "^words: cannot be combined with `init`"),
    ],
)
def test_captions_that_do_not_suit_the_initial_model_are_refused_before_any_work(
    place: Path, bases: Path, monkeypatch: pytest.MonkeyPatch, init: str, changes: dict[str, Any], message: str
) -> None:
    def decode(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(initial, "decode_training_set", decode)
    monkeypatch.setattr(pretraining, "decode_sets", decode)
    given = without_shape(settings(place, captions="names", init=str(bases / init)))
    with pytest.raises(InputError, match=message):
        nextpixel.pretrain(place / "in", out=bases / "run", **given | changes)


def test_memory_is_checked_before_any_work(place: Path, bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initial, "decode_training_set", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(decisions, "free_memory_bytes", lambda device: 1e3)
    given = without_shape(settings(place, captions="names", init=str(bases / "classes")))
    with pytest.raises(InputError, match="no setting makes it fit"):
        nextpixel.pretrain(place / "in", out=bases / "run", **given)


def test_a_plan_has_the_words_and_no_classes_of_the_run(
    place: Path, bases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {}
    for init in ("classes", "words"):
        for captions in ("", "--captions names", "--captions names --words 5"):
            if init == "words" and "--words" in captions:
                continue
            assert main(["plan", "--init", str(bases / init), *captions.split(), "--json"]) == 0
            shape = json.loads(capsys.readouterr().out)["shape"]
            assert shape["classes"] == []
            counts.setdefault(init, []).append(shape["words"])
    assert counts == {"classes": [0, 1000, 5], "words": [2, 2]}


def test_a_continued_model_names_the_model_before_it_and_no_lost_classes(place: Path, bases: Path) -> None:
    given = without_shape(settings(place, captions="names", init=str(bases / "classes"), steps=2))
    more = nextpixel.pretrain(place / "in", out=bases / "run", **given)
    assert more.words is not None and more.config.classes == ()
    assert more.facts["continued_from"] == "classes" and more.facts["kept"] == 1
    assert "finetuned_on" not in more.facts and "labels_per_class" not in more.facts


def test_new_words_leave_the_other_weights(model: ImageGPT) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.set_words(Words(["a", "b"]), seed=1)
    assert model.config.words == 2 and model.words is not None and model.words.table == ("a", "b")
    after = model.state_dict()
    assert after.pop("word_embedding").std().item() == pytest.approx(0.02, rel=0.2)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert model(torch.zeros(1, 16, dtype=torch.int64), tags=model.words.encode(["a, b"])).shape == (1, 16, 16)
