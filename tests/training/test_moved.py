"""A run whose pictures were moved goes on as if they had not been, and with no others."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import SIDE, assert_same, flags, photos, pictures, settings

import nextpixel
from nextpixel import InputError
from nextpixel.checkpoints import Run
from nextpixel.cli import main
from nextpixel.config import PretrainConfig
from nextpixel.data.decoded import decode
from nextpixel.files import BUNDLED
from nextpixel.images import save_png
from nextpixel.training.run_images import absolute, absolute_model, training_set
from nextpixel.training.setup import checked_settings

DISTILLED = {"steps": 1, "batch_images": 4, "device": "cpu", "dtype": "fp32", "threads": 1}


def test_a_bundled_model_is_not_the_folder_of_pictures_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in BUNDLED:
        (tmp_path / name).mkdir()
        assert absolute_model(name) == name and absolute(name) == str(tmp_path / name)
        assert checked_settings(tmp_path / "run", PretrainConfig(init=name)).init == name
        assert nextpixel.load(absolute_model(name)).config
        shutil.copytree(folder, tmp_path / name, dirs_exist_ok=True)
        assert (
            absolute_model(name)
            == str(tmp_path / name)
            == checked_settings(tmp_path / "run", PretrainConfig(init=name)).init
        )
    (tmp_path / "photos" / "config.json").unlink()
    (tmp_path / "photos" / "run.json").touch()
    assert absolute_model("photos") == str(tmp_path / "photos")
    assert absolute_model("owner/name") == "owner/name" and absolute_model(None) is None


def test_the_teacher_of_a_distillation_may_be_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embedded").mkdir()
    np.save("some.npy", pictures(8, 32))
    nextpixel.distill("some.npy", model="embedded", out="student", **DISTILLED)
    assert Run("student").facts()["decisions"]["teacher"] == "embedded"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of twenty pictures, and beside it palette.npy."""
    photos(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, picture in enumerate(pictures(20)):
        save_png(picture, folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def cut(place: Path, tmp_path: Path, cache: Path) -> Path:
    """A run of those pictures that stopped half way; its pictures and the cache are gone, moved/ has the same ones."""
    nextpixel.pretrain(place, out=tmp_path / "run", **settings(tmp_path))
    nextpixel.pretrain(place, out=tmp_path / "whole", **settings(tmp_path))
    for step in (10, 12):
        shutil.rmtree(tmp_path / "run" / f"step_{step:07d}")
    copy_elsewhere(place, tmp_path / "moved")
    shutil.rmtree(place)
    shutil.rmtree(cache / "decoded")
    return tmp_path / "run"


def copy_elsewhere(folder: Path, new: Path) -> None:
    """As other programs copy: with other times."""
    shutil.copytree(folder, new)
    for path in new.iterdir():
        os.utime(path, (1_000_000, 1_000_000))


def test_patterns_are_recorded_with_their_folder_and_names_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("shards/{0..3}.tar") == str(tmp_path / "shards" / "{0..3}.tar")
    assert absolute("cifar10") == "cifar10" and absolute(None) is None


def test_the_run_of_the_working_directory_is_not_that_of_a_bundled_model(
    cut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cut)
    assert training_set("embedded") is None


def test_a_moved_source_is_named_with_the_remedy(cut: Path, place: Path, capsys) -> None:
    assert main(["pretrain", "--resume", str(cut)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{place}: the images of this run no longer exist" in said
    assert said.endswith("pass their new path as --data")


def test_the_same_pictures_from_elsewhere_go_on_bit_by_bit(cut: Path, tmp_path: Path, cache: Path) -> None:
    assert main(["pretrain", "--resume", str(cut), "--data", str(tmp_path / "moved")]) == 0
    assert_same(cut, tmp_path / "whole")
    data = Run(cut).facts()["data"]
    assert data["source"] == data["path"] == str(tmp_path / "moved") and data["split"] is None
    shutil.rmtree(cut / "step_0000012")
    shutil.rmtree(cache / "decoded")
    assert main(["pretrain", "--resume", str(cut)]) == 0  # which remembers the place
    assert_same(cut, tmp_path / "whole")


def test_the_same_pictures_in_another_form_will_do(cut: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", pictures(20))
    nextpixel.pretrain(resume=cut, data=tmp_path / "array.npy")
    assert_same(cut, tmp_path / "whole")


@pytest.mark.parametrize("change", ["one pixel", "one more", "one less", "another order"])
def test_other_pictures_are_refused_and_nothing_is_recorded(cut: Path, tmp_path: Path, change: str, capsys) -> None:
    new = tmp_path / "moved"
    if change == "one pixel":
        picture = pictures(20)[3].copy()
        picture[0, 0, 0] ^= 1
        save_png(picture, new / "03.png")
    elif change == "one more":
        save_png(pictures(1, seed=9)[0], new / "20.png")
    elif change == "one less":
        (new / "19.png").unlink()
    else:
        (new / "00.png").rename(new / "99.png")
    before = (cut / "run.json").read_bytes()
    assert main(["pretrain", "--resume", str(cut), "--data", str(new)]) == 2
    assert f"{new}: expected the original images of the run, got others" in capsys.readouterr().err
    assert (cut / "run.json").read_bytes() == before and Run(cut).steps()[-1] < 10


def test_a_run_of_an_earlier_version_is_compared_with_the_decoded_set(place: Path, tmp_path: Path, cache: Path) -> None:
    nextpixel.pretrain(place, out=tmp_path / "run", **settings(tmp_path))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    del facts["decisions"]["pixels"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    copy_elsewhere(place, tmp_path / "moved")
    nextpixel.pretrain(resume=tmp_path / "run", data=tmp_path / "moved")
    assert Run(tmp_path / "run").facts()["data"]["path"] == str(tmp_path / "moved")
    shutil.rmtree(cache / "decoded")
    (tmp_path / "moved" / "00.png").unlink()
    with pytest.raises(InputError, match="expected the original images of the run"):
        nextpixel.pretrain(resume=tmp_path / "run", data=tmp_path / "moved")


def test_a_run_of_an_earlier_version_resumes_without_its_decoded_set(
    cut: Path, place: Path, tmp_path: Path, cache: Path
) -> None:
    """Its keys are those of how pictures were decoded then."""
    (tmp_path / "moved").rename(place)  # back where the run began
    facts = json.loads((cut / "run.json").read_text())
    facts["decisions"] |= dict.fromkeys(("train_key", "validation_key"), decode(place, SIDE).key_before)
    del facts["decisions"]["pixels"]
    (cut / "run.json").write_text(json.dumps(facts))
    shutil.rmtree(cache / "decoded")
    nextpixel.pretrain(resume=cut)
    assert_same(cut, tmp_path / "whole")
    (place / "00.png").unlink()
    shutil.rmtree(cut / "step_0000012")
    shutil.rmtree(cache / "decoded")
    with pytest.raises(InputError, match="expected the original images of the run"):
        nextpixel.pretrain(resume=cut)


@pytest.mark.parametrize("count", [0, 1])
def test_samples_are_mentioned_where_there_are_any(place: Path, tmp_path: Path, capsys, count: int) -> None:
    options = flags(settings(tmp_path) | {"sample_images": count})
    assert main(["pretrain", str(place), "--out", str(tmp_path / "run"), *options]) == 0
    assert (f"{tmp_path / 'run' / 'samples'}" in capsys.readouterr().err) == bool(count)


def test_data_is_for_runs_that_go_on(place: Path, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "run")
    assert main(["pretrain", str(place), "--out", out, "--data", str(place), *flags(settings(tmp_path))]) == 2
    assert "--data: requires --resume" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"^data: expected `resume` or `branch` with it"):
        nextpixel.pretrain(place, out=out, data=place, **settings(tmp_path))
    nextpixel.pretrain(place, out=out, **settings(tmp_path, steps=1))
    with pytest.raises(InputError, match=r"^resume: takes the settings of its run"):
        nextpixel.pretrain(resume=out, force=True)


@pytest.mark.parametrize("python", [True, False], ids=["python", "command"])
def test_a_branch_of_a_run_with_moved_pictures(
    validated: Path, place: Path, tmp_path: Path, python: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "moved").rename(tmp_path / "again")
    given = {"data": tmp_path / "again", "validation": tmp_path / "held"}
    if python:
        nextpixel.pretrain(branch=validated, out=tmp_path / "branch", steps=8, **given)
    else:
        command = ["pretrain", "--branch", str(validated), "--out", str(tmp_path / "branch"), "--steps", "8"]
        assert main([*command, *flags(given)]) == 0, capsys.readouterr().err
    facts = Run(tmp_path / "branch").facts()
    assert facts["data"]["path"] == str(given["data"]) and facts["config"]["validation"] == str(given["validation"])
    assert Run(tmp_path / "branch").steps()[-1] == 8 and Run(validated).facts()["data"]["path"] != str(given["data"])


@pytest.fixture
def validated(cut: Path, place: Path, tmp_path: Path, cache: Path) -> Path:
    """Runs half and full of the pictures in moved/, with validation images that were moved to held/ since."""
    for i, picture in enumerate(pictures(6, seed=5)):
        (tmp_path / "old").mkdir(exist_ok=True)
        save_png(picture, tmp_path / "old" / f"{i}.png")
    for out in ("half", "full"):
        options = settings(tmp_path) | {"validation": str(tmp_path / "old"), "schedule": "linear"}
        nextpixel.pretrain(tmp_path / "moved", out=tmp_path / out, **options)
    for step in (10, 12):
        shutil.rmtree(tmp_path / "half" / f"step_{step:07d}")
    copy_elsewhere(tmp_path / "old", tmp_path / "held")
    shutil.rmtree(tmp_path / "old")
    shutil.rmtree(cache / "decoded")
    return tmp_path / "half"


@pytest.mark.parametrize("both", [False, True], ids=["validation alone", "both"])
def test_moved_validation_images(validated: Path, tmp_path: Path, cache: Path, capsys, both: bool) -> None:
    command = ["pretrain", "--resume", str(validated)]
    if both:
        (tmp_path / "moved").rename(tmp_path / "again")
        command += ["--data", str(tmp_path / "again")]
    assert main(command) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'old'}: the images of this run no longer exist" in said
    assert said.endswith("pass their new path as --validation")
    assert main([*command, "--validation", str(tmp_path / "held")]) == 0
    assert_same(validated, tmp_path / "full")
    facts = Run(validated).facts()
    assert facts["config"]["validation"] == str(tmp_path / "held")
    assert facts["data"]["path"] == str(tmp_path / ("again" if both else "moved"))
    shutil.rmtree(cache / "decoded")
    nextpixel.pretrain(resume=validated)  # remembers the place


def test_other_validation_images_are_refused(validated: Path, cut: Path, tmp_path: Path) -> None:
    (tmp_path / "held" / "0.png").unlink()
    before = (validated / "run.json").read_bytes()
    with pytest.raises(InputError, match="held: expected the original images of the run, got others"):
        nextpixel.pretrain(resume=validated, validation=tmp_path / "held")
    assert (validated / "run.json").read_bytes() == before
    with pytest.raises(InputError, match=r"^validation: (?!.*run\.json).*run validates on some of its training images"):
        nextpixel.pretrain(resume=cut, validation=tmp_path / "held")


def test_validation_images_alone_need_the_others_in_place(validated: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").rename(tmp_path / "again")
    with pytest.raises(InputError, match=r"moved: the images of this run no longer exist.*`data`"):
        nextpixel.pretrain(resume=validated, validation=tmp_path / "held")
    options = settings(tmp_path, steps=1) | {"validation": str(tmp_path / "held")}
    nextpixel.pretrain(pictures(20), out=tmp_path / "memory", **options)
    with pytest.raises(InputError, match="started with images in memory; pass them again as `data`"):
        nextpixel.pretrain(resume=tmp_path / "memory", validation=tmp_path / "held")


def test_a_moved_distillation(folder: Path, place: Path, tmp_path: Path, cache: Path) -> None:
    options = dict(
        model=folder, steps=8, batch_images=4, checkpoint_every_steps=4, evaluate_every_steps=4, device="cpu"
    )
    nextpixel.distill(place, out=tmp_path / "run", **options)
    nextpixel.distill(place, out=tmp_path / "whole", **options)
    shutil.rmtree(tmp_path / "run" / "step_0000008")
    (tmp_path / "run" / "teacher.npy").unlink()
    copy_elsewhere(place, tmp_path / "moved")
    shutil.rmtree(place)
    shutil.rmtree(cache / "decoded")
    with pytest.raises(InputError, match=r"no longer exist.*`data`"):
        nextpixel.distill(resume=tmp_path / "run")
    assert main(["distill", "--resume", str(tmp_path / "run"), "--data", str(tmp_path / "moved")]) == 0
    names = [tmp_path / run / "step_0000008" / "model.safetensors" for run in ("run", "whole")]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_a_moved_finetuning_and_its_test(folder: Path, tmp_path: Path, cache: Path) -> None:
    for part, seed in (("train", 0), ("test", 1)):
        for i, picture in enumerate(pictures(16, seed=seed)):
            (tmp_path / part / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            save_png(picture, tmp_path / part / "ab"[i % 2] / f"{i:02d}.png")
    options = dict(
        epochs=2, batch_images=4, checkpoint_every_steps=4, log_every_steps=1, device="cpu", dtype="fp32", compile="off"
    )
    for out in ("run", "whole"):
        nextpixel.finetune(folder, tmp_path / "train", out=tmp_path / out, test=tmp_path / "test", **options)
    run = Run(tmp_path / "run")
    shutil.rmtree(run.folder(run.steps()[-1]))
    (run.path / "test.json").unlink()
    for part in ("train", "test"):
        shutil.copytree(tmp_path / part, tmp_path / f"new {part}")
        shutil.rmtree(tmp_path / part)
    shutil.rmtree(cache / "decoded")
    command = ["finetune", "--resume", str(run.path), "--data", str(tmp_path / "new train")]
    assert main([*command, "--test", str(tmp_path / "new test")]) == 0
    assert_same(run.path, tmp_path / "whole")
    assert (run.path / "test.json").read_bytes() == (tmp_path / "whole" / "test.json").read_bytes()
