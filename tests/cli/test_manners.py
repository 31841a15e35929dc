"""Manners of the command line: help, completion, several sources, new folders, quiet, quick answers to bad input."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextpixel.cli import VERBS, main
from nextpixel.cli.arguments import show_table
from nextpixel.images import save_png

SMALL_RUN = "--layers 1 --width 16 --heads 2 --side 4 --steps 1 --batch-images 2 --sample-images 0 --threads 1"


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, a picture and two folders of dark and of bright pictures."""
    rng = np.random.default_rng(0)
    places = [f"{part}/{split}/{kind}" for part in ("one", "two") for split in ("train", "test") for kind in "ab"]
    for place in places:
        for i in range(3):
            darkest = 128 if place.endswith("b") else 0
            save_png(rng.integers(darkest, darkest + 128, (6, 6, 3)).astype(np.uint8), tmp_path / place / f"{i}.png")
    save_png(rng.integers(0, 256, (6, 6, 3), np.uint8), tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def succeed(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    assert main(shlex.split(command)) == 0, capsys.readouterr().err
    return capsys.readouterr()


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_in_both_orders(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert succeed(f"help {verb}", capsys) == succeed(f"{verb} --help", capsys)


def test_help_alone_is_the_overview_and_of_an_unknown_verb_names_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert succeed("help", capsys) == succeed("--help", capsys)
    assert main(["help", "complet"]) == 2
    assert capsys.readouterr().err == "nextpixel: unknown command 'complet'; did you mean 'complete'?\n"


OUTPUTS = {
    "complete photo.png -n 1 --model model --out a/b.png --each c/d": ["a/b.png", "c/d/0_photo_0.png"],
    "sample -n 1 --model model --out a/b.png --sheet c/d.png --gif e/f.gif": ["c/d.png", "c/d.json", "e/f.gif"],
    "score one/train --model model --out a/b.csv --report c/d.html --heatmap e/f": ["a/b.csv", "c/d.html", "e/f"],
    "features one/train --model model --out a/b/c.npz": ["a/b/c.npz"],
    "palette one/train --colors 8 --side 4 --out a/b.npy": ["a/b.npy", "a/b.swatch.png"],
    "prepare one/train a/b --side 4": ["a/b"],
    f"pretrain one/train --out a/b/run {SMALL_RUN}": ["a/b/run/run.json"],
    "probe one --model model --no-baselines --out a/b --figure c/d.png": ["a/b/probe.json", "c/d.png"],
}


@pytest.mark.parametrize(("command", "files"), OUTPUTS.items(), ids=OUTPUTS)
def test_missing_parents_of_outputs_are_created(
    command: str, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(command, capsys)
    assert [file for file in files if not Path(file).exists()] == []


def test_a_video_needs_ffmpeg(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert main("sample -n 1 --model model --mp4 d.mp4".split()) == 2
    expected = "nextpixel: --mp4: needs the program ffmpeg, which was not found; install it, or use --gif\n"
    assert capsys.readouterr().err == expected and not Path("samples.png").exists()


def count(command: str, capsys: pytest.CaptureFixture[str]) -> int:
    out = json.loads(succeed(f"{command} --json", capsys)[0])
    if "shape" in out:
        return out["shape"][0]
    return len(out["images"]) if isinstance(out.get("images"), list) else out.get("images") or len(out["predictions"])


def test_several_files_and_folders_are_taken_as_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    several = "photo.png one/train two/test/a"  # 1 + 6 + 3
    assert count(f"score {several} --model model", capsys) == 10
    assert count(f"evaluate {several} --model model", capsys) == 10
    assert count(f"features {several} --model model", capsys) == 10
    succeed("probe one two --model model --no-baselines --out saved", capsys)
    assert count(f"predict saved {several}", capsys) == 10
    err = succeed(f"pretrain {several} --out run {SMALL_RUN}", capsys)[1]
    facts = json.loads(Path("run/run.json").read_text())["data"]
    assert facts["source"] == "photo.png, one/train, two/test/a" and len(facts["path"]) == 3, err
    assert "prepared: 10 images" in succeed(f"prepare {several} prepared --side 4", capsys)[0]
    assert succeed("palette one/train photo.png --colors 8 --side 4", capsys)[0].startswith("palette.npy: 8 colours")
    assert "on 7 images" in succeed("palette one/train photo.png --colors 8 --side 4 --out again.npy", capsys)[0]


def test_a_run_of_several_folders_is_resumed_where_they_were_moved(
    capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    options = "--model model --epochs 1 --threads 1 --batch-images 4"
    succeed(f"finetune one/train two/train --out clf {options}", capsys)
    assert json.loads(Path("clf/run.json").read_text())["data"]["path"] == [str(Path(p).resolve()) for p in
                                                                            ("one/train", "two/train")]  # fmt: skip
    shutil.rmtree(cache)
    for name in ("one", "two"):
        Path(name).rename(f"moved-{name}")
    succeed("finetune --resume clf --data moved-one/train moved-two/train", capsys)
    assert json.loads(Path("clf/run.json").read_text())["data"]["path"][1].endswith("moved-two/train")


BAD = """
frobnicate
help frobnicate
complete photo.png --keep 1
complete photo.png --keep x
complete nowhere.png
complete photo.png --out photo.jpg
complete photo.png --model nowhere
vary nowhere.png
sample -n 0
sample --temperature -1
sample --quiet --verbose
score
score photo.png nowhere.png
score photo.png --by size
evaluate nowhere
evaluate photo.png --train nowhere
features nowhere --model model
features photo.png --out a.txt
probe one --test nowhere
predict nowhere nowhere
finetune nowhere --out run
finetune one --out model
finetune --resume nowhere
pretrain photo.png
pretrain nowhere --out run
pretrain photo.png --out model
pretrain photo.png --out run --validation nowhere
pretrain photo.png --out run --init nowhere
pretrain --resume nowhere
pretrain --branch nowhere --steps 3 --out run
distill nowhere --out run
distill --resume nowhere
prepare photo.png
prepare nowhere out
palette photo.png --colors 1
serve --model nowhere
serve --port 70000
serve --allow-origin http://a.example:80
info nowhere
info model --html page.html
convert model
bench --batch 0
completion tcsh
""".strip().splitlines()


def test_bad_arguments_are_refused_without_importing_torch(desk: Path) -> None:
    code = """if True:
        import contextlib, io, shlex, sys
        from nextpixel.cli import main

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name == "torch":
                    raise ImportError("torch is imported")

        sys.meta_path.insert(0, Refuse())
        for line in sys.argv[1:]:
            with contextlib.redirect_stderr(io.StringIO()) as err:
                code = main(shlex.split(line))
            if code != 2:
                print(line, code, err.getvalue())
    """
    done = subprocess.run([sys.executable, "-c", code, *BAD], capture_output=True, text=True, check=True)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
    ids=["default", "spin count", "wait policy"],
)
def test_openmp_is_told_how_long_to_spin_before_torch_is_imported(settings: dict[str, str], expected: str) -> None:
    code = """if True:
        import os, sys
        from nextpixel.cli import main

        class Stop:
            def find_spec(self, name, path=None, target=None):
                if name == "torch":
                    print(os.environ.get("GOMP_SPINCOUNT"))
                    sys.exit()

        sys.meta_path.insert(0, Stop())
        main(["sample"])
    """
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=others | settings)
    assert done.stdout == expected + "\n", done.stderr


@pytest.mark.parametrize("command", ["complete photo.png -n 1", "score one/train one/test", "sample -n 1"])
def test_quiet_prints_results_alone(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("one/train/a/broken.png").write_text("not a picture")
    out, err = succeed(f"{command} --model model", capsys)
    assert err != ""
    assert succeed(f"{command} --model model --quiet", capsys) == (out, "")


def test_quiet_still_prints_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "nowhere", "--quiet"]) == 2
    assert "nowhere" in capsys.readouterr().err
    succeed("sample -n 1 --model model", capsys)
    assert main(["sample", "-n", "1", "--model", "model"]) == 0 and "--seed 1" in capsys.readouterr().err


def test_numbers_stand_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photo.png").rename("a much longer name.png")
    lines = succeed("complete 'a much longer name.png' one/train/a/0.png -n 2 --model model", capsys)[0].splitlines()
    assert lines[0].index("nats") == lines[1].index("nats") and lines[0].startswith("a much longer name.png: nats")
    show_table([("a.png", "10.5", "x"), ("long.png", "9.25", "yy"), ("", "-1", "")])
    assert capsys.readouterr().out == "a.png     10.5  x\nlong.png  9.25  yy\n            -1\n"
    show_table([("1.5e-07", "p 0.5", "9.png"), ("nan", "p 0.05", "10 b.png")], heads=("nats", "", "file"))
    assert capsys.readouterr().out == "   nats          file\n1.5e-07   p 0.5  9.png\n    nan  p 0.05  10 b.png\n"


def test_complete_without_arguments_completes_the_cat(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = succeed("complete --model model -n 1", capsys)
    assert out.startswith("cat.jpg: nats per pixel ") and Path("completions.png").is_file()
    assert "sees each picture at 4 x 4 pixels" in err


def test_full_joins_completions_to_the_picture_at_its_own_resolution(capsys: pytest.CaptureFixture[str]) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (50, 40, 3), np.uint8)
    save_png(photo, "large.png")
    out, err = succeed("complete one/train large.png -n 2 --model model --full full --json", capsys)
    files = json.loads(out)["full"]
    assert "sees each picture at 4 x 4 pixels\n" in err
    assert len(files) == 14 and files[-1] == "full/13_large_1.png"
    for file in files[-2:]:
        with Image.open(file) as opened:
            joined = np.asarray(opened)
        assert joined.shape == (40, 40, 3) and (joined[:20] == photo[5:25]).all() and (joined != photo[5:45]).any()


def test_zoom_is_the_size_of_a_pixel(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for zoom in (60, 61):
        succeed(f"complete photo.png -n 1 --model model --zoom {zoom}", capsys)
        with Image.open("completions.png") as grid:
            sizes.append(np.array(grid.size))
    assert (sizes[1] - sizes[0]).tolist() == [3 * 4, 4]
    assert main(shlex.split("complete photo.png --zoom 0")) == 2


COMPLETED = {
    "com": {"complete", "completion"},
    "help pre": {"predict", "prepare", "pretrain"},
    "complete --kee": {"--keep", "--keep-side"},
    "complete --keep-side ": {"top", "right", "bottom", "left"},
    "features --dtype ": {"fp32", "bf16", "int8"},
    "pretrain --positi": {"--positions"},
    "probe --no-b": {"--no-baselines"},
    "completion ": {"bash", "zsh", "fish"},
    "score phot": {"photo.png"},
    "sample --out phot": {"photo.png"},
    "complete --model mod": {"model"},
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_verbs_options_choices_and_files(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = succeed("completion bash", capsys)[0]
    for line in COMPLETED:
        words = ["nextpixel", *line.split(" ")]
        quoted = " ".join(map(shlex.quote, words))
        script += f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMPREPLY=()\n"
        script += '_shtab_nextpixel nextpixel; echo "found: ${COMPREPLY[*]}"\n'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    found = [set(line.split()[1:]) for line in done.stdout.splitlines() if line.startswith("found:")]
    assert dict(zip(COMPLETED, found, strict=True)) == COMPLETED


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_option_of_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = succeed(f"completion {shell}", capsys)[0]
    for verb in VERBS:
        page = (Path(__file__).parents[2] / "docs/cli.md").read_text().split(f"\n## nextpixel {verb}\n")[1]
        options = [line.split("`")[1] for line in page.split("\n## ")[0].splitlines() if line.startswith("| `--")]
        spelled = [f"-l {option[2:]}" if shell == "fish" else option for option in options]
        assert options and [option for option in spelled if option not in script] == [], verb


def run_with_output(command: str, output: int) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words = [sys.executable, "-m", "nextpixel", *shlex.split(command)]
    done = subprocess.run(words, stdout=output, stderr=subprocess.PIPE, text=True, env=environment)
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ["--help", "completion bash", "info photo.png --help"])
def test_nobody_reads_the_output(command: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        assert run_with_output(command, writes) == (0, "")
    finally:
        os.close(writes)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["--help", "completion bash", "info faces --json"])
def test_output_that_cannot_be_written_is_an_error(command: str) -> None:
    with open("/dev/full", "w") as full:
        code, error = run_with_output(command, full.fileno())
    assert code == 1 and error.splitlines()[-1].endswith("No space left on device") and error.count("\n") <= 3
