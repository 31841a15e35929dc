"""Files and folders appear whole or not at all, and a cache is loaded from only where nobody else can write to it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from nextpixel import InputError, WorkError, files
from nextpixel.cli import main
from nextpixel.files import (
    check_output,
    clipped,
    is_sealed,
    new_file,
    new_folder,
    new_output,
    remove_folder,
    remove_parts,
    user_cache,
    write_sealed,
    write_text,
)
from nextpixel.images import save_png

LONG = "é" * 127 + "x"  # 255 bytes


@pytest.fixture
def recorded(monkeypatch):
    """What is put on the disk and renamed, in order; descriptors by the path they were opened with."""
    calls = []

    def record(name):
        real = getattr(os, name)

        def call(first, *rest):
            path = os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else str(first)
            calls.append((name, Path(path).name))
            return None if name == "fsync" else real(first, *rest)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename", "replace"):
        record(name)
    return calls


def test_a_file_is_on_the_disk_before_it_takes_its_name_and_then_its_folder(tmp_path, recorded):
    with new_file(tmp_path / "a") as file:
        file.write(b"whole")
        part = Path(file.name).name
    assert recorded == [("fsync", part), ("replace", part), ("fsync", tmp_path.name)]
    assert (tmp_path / "a").read_bytes() == b"whole" and len(list(tmp_path.iterdir())) == 1


def test_everything_in_a_folder_is_on_the_disk_before_it_takes_its_name(tmp_path, recorded):
    with new_folder(tmp_path / "a") as part:
        (part / "in").mkdir()
        (part / "in" / "deep").write_text("x")
        (part / "flat").write_text("y")
    assert recorded[:2] == [("fsync", "deep"), ("fsync", "in")]  # a folder after what lies in it
    assert recorded[2:] == [("fsync", "flat"), ("fsync", part.name), ("rename", part.name), ("fsync", tmp_path.name)]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_missing_parents_are_created_with_the_output(tmp_path):
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "never" / "a"):
        1 / 0  # noqa: B018
    write_text(tmp_path / "x" / "y" / "a", "text")
    with new_folder(tmp_path / "z" / "folder"):
        pass
    save_png(np.zeros((2, 2, 3), np.uint8), tmp_path / "w" / "a.png")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert {"x/y/a", "z/folder", "w/a.png"} <= found and not any(name.endswith(".part") for name in found)


def test_names_of_any_length_can_be_written(tmp_path):
    write_text(tmp_path / LONG, "a")
    write_text(tmp_path / LONG, "b")
    with new_folder(tmp_path / LONG[::-1]) as part:
        (part / LONG).write_text("c")
    assert (tmp_path / LONG).read_text() == "b" and (tmp_path / LONG[::-1] / LONG).read_text() == "c"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_nothing_and_the_old_file(tmp_path, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises((WorkError, KeyboardInterrupt)), new_file(tmp_path / "a") as file:
        file.write(b"half")
        raise error
    with pytest.raises((WorkError, KeyboardInterrupt)), new_folder(tmp_path / "b") as part:
        write_text(part / "c", "half")
        raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_file_that_cannot_be_written_into_a_new_folder_bears_its_final_name(tmp_path):
    with pytest.raises(WorkError) as raised, new_folder(tmp_path / "a") as part:
        (part / "file").touch()
        write_text(part / "file" / "b", "x")
    assert str(raised.value).startswith(f"{tmp_path / 'a' / 'file' / 'b'}: cannot be written (")


def test_a_folder_that_exists_by_then_is_kept(tmp_path):
    for shared in (True, False):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / "first").touch()
        try:
            with new_folder(tmp_path / "a", shared=shared) as part:
                (part / "second").touch()
        except WorkError:
            assert not shared
        assert [path.name for path in tmp_path.rglob("*")] == ["a", "first"]


def test_only_leftovers_that_nobody_writes_to_are_swept(tmp_path):
    old, new = tmp_path / ".nextpixel-0123456789abcdef.part", tmp_path / ".nextpixel-fedcba9876543210.part"
    at_work = tmp_path / ".nextpixel-00000000000000ff.part"
    others = [tmp_path / name for name in (".browser.part", "a.part", ".features.npz.parts")]
    for path in (old, at_work):
        path.mkdir()
        (path / "squares").touch()
    for path in (new, *others):
        path.touch()
    for path in (old, old / "squares", at_work, *others):
        os.utime(path, (0, 0))
    check_output(tmp_path / "out")
    with pytest.raises(InputError, match=r"^out: / exists already"):
        new_output("/")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (new, at_work, *others)}
    remove_parts(tmp_path, 0.0)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in others}


def test_a_removed_folder_is_gone_from_its_name_first(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(files.shutil, "rmtree", lambda path, **_: None)  # killed here
    remove_folder(tmp_path / "a")
    [left] = tmp_path.iterdir()
    assert files.PART.fullmatch(left.name)


def test_an_output_is_refused_before_the_work(tmp_path):
    (tmp_path / "there").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("there", "dangling"):
        with pytest.raises(InputError, match=f"out: .*{name} exists already"):
            new_output(tmp_path / name)
    assert check_output(tmp_path / "missing" / "deep" / "a", "report").parent.name == "deep"
    assert not (tmp_path / "missing").exists()
    with pytest.raises(InputError, match="at most 255 bytes, got"):
        check_output(tmp_path / (LONG + "x"))
    for name in ("there/a", "there/deep/a"):
        with pytest.raises(InputError, match=r"report: expected a folder, got the file .*there \(for .*a\)"):
            check_output(tmp_path / name, "report")


def test_a_name_is_clipped_by_bytes_between_letters():
    assert clipped("a" * 300, ".png") == "a" * 251 + ".png"
    assert clipped("é" * 200, ".png") == "é" * 125 + ".png"
    assert clipped("short", ".png") == "short.png"
    assert clipped("\udcff" * 300, "x") == "\udcff" * 254 + "x"  # a file name need not be text


# ---- what a sealed file is worth


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 1000])
def test_a_sealed_file_is_whole_or_not_taken(tmp_path, size):
    path, content = tmp_path / "a", bytes(range(256)) * 4
    assert not is_sealed(path)
    write_sealed(path, content[:size])
    assert is_sealed(path) and path.read_bytes()[:size] == content[:size]
    whole = path.read_bytes()
    for length in {0, 1, size // 2, size - 1, size, size + 16, size + 31} - {-1}:
        path.write_bytes(whole[:length])
        assert not is_sealed(path), length
    for place in {0, size // 2, size, size + 31}:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not is_sealed(path), place


# ---- the cache


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_cache_is_for_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("NEXTPIXEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache("decoded") == tmp_path / "xdg" / "nextpixel" / "decoded"
    assert mode(tmp_path / "xdg" / "nextpixel") == mode(tmp_path / "xdg" / "nextpixel" / "decoded") == 0o700
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache("kernels") == tmp_path / "home" / ".cache" / "nextpixel" / "kernels"
    monkeypatch.setenv("NEXTPIXEL_CACHE", str(tmp_path / "named"))
    assert user_cache("kernels") == tmp_path / "named" / "kernels"
    assert user_cache("kernels", tmp_path / "given") == tmp_path / "given" / "kernels"


@pytest.mark.parametrize("where", ["", "kernels"])
@pytest.mark.parametrize("bits", [0o777, 0o775, 0o757, 0o1777])
def test_a_cache_that_others_can_write_to_is_not_loaded_from(tmp_path, capsys, where, bits):
    place = tmp_path / "shared"
    (place / "kernels").mkdir(parents=True)
    (place / where).chmod(bits)
    for _ in range(2):
        found = user_cache("kernels", place)
    own = f"nextpixel-{os.geteuid()}"
    assert found == place / own / "kernels" and mode(place / own) == mode(found) == 0o700
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"others can write to {place / where}" in said and "NEXTPIXEL_CACHE" in said


def test_a_private_folder_of_somebody_else_is_not_taken_either(tmp_path, monkeypatch, capsys):
    place, temporary = tmp_path / "shared", tmp_path / "tmp"
    own = f"nextpixel-{os.geteuid()}"
    for folder in (place, temporary):
        (folder / own).mkdir(parents=True)
        (folder / own).chmod(0o777)
        folder.chmod(0o1777)
    monkeypatch.setattr(files.tempfile, "tempdir", str(temporary))
    files.own_temporary_folder.cache_clear()
    found = user_cache("kernels", place)
    files.own_temporary_folder.cache_clear()
    assert found.parent.parent == temporary and found.parent.name != own and mode(found) == 0o700


def test_a_cache_of_another_user_is_not_loaded_from(tmp_path, monkeypatch):
    place = tmp_path / "theirs"
    (place / "decoded").mkdir(parents=True)
    uid = os.geteuid()
    monkeypatch.setattr(files.os, "geteuid", lambda: uid + 1)
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(files, "own_temporary_folder", lambda: pytest.fail("another one is private"))
    with pytest.raises(pytest.fail.Exception):  # whatever this user makes belongs to another, too
        user_cache("decoded", place)


# ---- containers: users without a name, without a home, on file systems they may not write to


def as_nobody(
    code: str, *arguments: str, cwd: Path | str = "/", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Python as a user without an entry in the list of users, whose only settings are these.

    Root may write anywhere, so its tests become another user that may read everything.
    """
    become = (
        "setpriv --reuid 54321 --regid 54321 --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
    )
    command = [*(become.split() if os.geteuid() == 0 else ()), sys.executable, "-c", code, *arguments]
    known = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(files.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=known | environment)


@contextmanager
def public_folder(bits: int) -> Iterator[Path]:
    """A folder that every user can reach: not pytest's, which each of its sessions closes to others."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(bits)
        yield place


@pytest.fixture
def open_folder():
    """A folder that everybody may write to."""
    with public_folder(0o1777) as place:
        yield place


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "there is no home folder"),
        ({"HOME": "/"}, "Permission denied"),
        ({"HOME": "/nonexistent"}, "Permission denied"),
        ({"NEXTPIXEL_CACHE": "/proc/cache"}, "No such file"),
        ({"NEXTPIXEL_CACHE": "/etc/passwd"}, "exists"),
        ({"XDG_CACHE_HOME": "/usr"}, "Permission denied"),
    ],
)
def test_without_a_cache_a_private_temporary_folder_is_used_and_said(open_folder, settings, reason):
    code = "from nextpixel.files import user_cache; print(user_cache('decoded'), user_cache('kernels'))"
    done = as_nobody(code, TMPDIR=str(open_folder), **settings)
    assert done.returncode == 0, done.stderr
    [own] = open_folder.iterdir()
    assert done.stdout.split() == [str(own / "decoded"), str(own / "kernels")] and mode(own) == 0o700
    assert done.stderr.count("\n") == 1 and reason in done.stderr and "set NEXTPIXEL_CACHE" in done.stderr


def test_where_nothing_can_be_written_the_sentence_names_a_remedy():
    code = """if True:
        import tempfile
        from nextpixel.files import user_cache
        def none():
            raise FileNotFoundError(2, "No usable temporary directory found")
        tempfile.gettempdir = none
        user_cache("decoded")
    """
    done = as_nobody(code, HOME="/nonexistent")
    assert "WorkError: cache: expected a folder that can be written to, got none" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("set NEXTPIXEL_CACHE to one")


def test_an_output_folder_that_is_not_ones_own_is_refused_before_the_work(tmp_path, open_folder):
    (tmp_path / "read only").mkdir()
    (tmp_path / "read only").chmod(0o555)
    code = "import sys; from nextpixel.files import check_output; check_output(sys.argv[1])"
    done = as_nobody(code, str(tmp_path / "read only" / "a.png"))
    assert f"InputError: out: the folder {tmp_path / 'read only'} cannot be written to" in done.stderr
    assert as_nobody(code, str(open_folder / "a.png")).returncode == 0


OUTPUTS = [  # of every verb; its model or pictures are missing, too, which would be told later
    "complete cat.png --model none --out {}/a.png",
    "complete cat.png --model none --out a.png --each {}/a",
    "sample --model none --out {}/a.png",
    "sample --model none --out a.png --each {}/a",
    "score none --model none --out {}/a.csv",
    "score none --model none --report {}/a.html",
    "score none --model none --heatmap {}/a",
    "evaluate none --train none --samples 20 --model none --nearest {}/a.png",
    "features none --model none --out {}/a.npz",
    "features none --model none --out {}/a.parquet",
    "probe none --model none --out {}/a",
    "probe none --model none --figure {}/a.png",
    "predict none none --out {}/a.csv",
    "finetune none --model none --out {}/a",
    "pretrain none --out {}/a",
    "distill none --model none --out {}/a",
    "study none --data none --out {}/a",
    "palette none --out {}/a.npy",
    "prepare none {}/a",
    "convert none {}/a",
    "convert none --to {}/a.onnx",
    "info none --html {}/a.html",
    "bench --model none --out {}/a.json",
]


@pytest.fixture(scope="module")
def complaints() -> dict[str, tuple[int, str]]:
    """The exit code and the sentence of each of OUTPUTS, into a folder that may not be written to."""
    code = """if True:
        import contextlib, io, json, shlex, sys
        from nextpixel.cli import main
        told = {}
        for line in json.loads(sys.argv[1]):
            with contextlib.redirect_stderr(io.StringIO()) as err:
                told[line] = main(shlex.split(line.format(sys.argv[2]))), err.getvalue()
        print(json.dumps(told))
    """
    with public_folder(0o555) as place:
        done = as_nobody(code, json.dumps(OUTPUTS), str(place), cwd=place)
        assert done.returncode == 0 and list(place.iterdir()) == [], done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("line", OUTPUTS)
def test_every_verb_checks_its_outputs_before_the_work(complaints, line):
    code, sentence = complaints[line]
    assert code == 2 and "cannot be written to (expected for" in sentence and sentence.count("\n") == 1, sentence


def test_work_from_a_read_only_folder_as_an_ordinary_user(folder, tmp_path, open_folder):
    photos = tmp_path / "place" / "photos"
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)):
        part = photos / ("test" if i < 8 else "train") / "ab"[i % 2]
        part.mkdir(parents=True, exist_ok=True)
        save_png(image, part / f"{i}.png")
    photos.parent.chmod(0o555)
    (open_folder / "out").mkdir()
    (open_folder / "out").chmod(0o777)
    lines = [
        "complete photos/test/a/0.png --model {0} --out {1}/a.png",
        "pretrain photos --out {1}/run --steps 2 --batch-images 4 --layers 1 --width 24 --heads 2 --side 4",
        "probe photos --out {1}/probe",
    ]
    code = "import sys; from nextpixel.cli import main\nfor line in sys.argv[1:]: assert main(line.split()) == 0, line"
    commands = [line.format(folder, open_folder / "out") for line in lines]
    done = as_nobody(code, *commands, cwd=photos.parent, TMPDIR=str(open_folder))
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(open_folder / "out")) == ["a.png", "probe", "run"]
    assert (open_folder / "out" / "run" / "step_0000002" / "model.safetensors").is_file()
    assert os.listdir(photos.parent) == ["photos"]


def test_no_output_fails_for_the_length_of_a_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    pictures = ["é" * 125 + "x.png", "é" * 125 + "y.png"]  # 255 bytes
    for name in pictures:
        save_png(rng.integers(0, 256, (6, 6, 3), np.uint8), name)
    options = ["--model", str(folder)]
    assert main(["complete", *pictures, *options, "-n", "2", "--each", "all", "--out", "c" * 251 + ".png"]) == 0
    assert [len(name.encode()) for name in os.listdir("all")] == [254] * 4  # of whole letters
    Path("photos").mkdir()
    for name in pictures:
        Path(name).rename(Path("photos", name))
    assert main(["score", "photos", *options, "--heatmap", "maps", "--out", "s" * 251 + ".csv"]) == 0
    assert len(list(Path("maps").iterdir())) == 2
    assert main(["features", "photos", *options, "--out", "f" * 251 + ".npz"]) == 0
    assert main(["prepare", "photos", "p" * 255, "--side", "4"]) == 0
    assert [name for name in os.listdir() if name.endswith("parts")] == []
