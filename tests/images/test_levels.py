"""A number has the range its set has: found over the set, kept with what is made from it, given by range and bands."""

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import nextpixel
from nextpixel import images
from nextpixel.cli import main
from nextpixel.config import Levels
from nextpixel.data.decoded import decode
from nextpixel.data.prepared import Job, merge, prepare
from nextpixel.errors import InputError
from nextpixel.images import find_range, read_pixels
from nextpixel.images.sources import load_images, open_source

SIDE = 8


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEXTPIXEL_CACHE", str(tmp_path / "cache"))


def ramp(low: float, high: float, kind: type = np.uint16) -> np.ndarray:
    return np.linspace(low, high, SIDE * SIDE).reshape(SIDE, SIDE).astype(kind)


def folder_of(folder: Path, *pictures: np.ndarray, end: str = "tif") -> str:
    folder.mkdir()
    for number, values in enumerate(pictures):
        if end == "npy":
            np.save(folder / f"{number}.npy", values)
        elif end == "tif":
            tifffile.imwrite(folder / f"{number}.tif", values, photometric="rgb" if values.ndim == 3 else "minisblack")
        else:
            Image.fromarray(values).save(folder / f"{number}.{end}")
    return str(folder)


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    grey = np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255)
    return np.repeat(grey[..., None], 3, -1) if values.ndim == 2 else grey


# ---- found over the set


@pytest.mark.parametrize("end", ["png", "tif"])
def test_12_bits_in_16_are_neither_black_nor_stretched_one_by_one(end, tmp_path, capsys):
    dark, bright = ramp(0, 500), ramp(0, 4095)
    found = decode(folder_of(tmp_path / "set", dark, bright, end=end), SIDE)
    assert found.levels.range == (0, 4095)
    assert (found.images[0] == scaled(dark, 0, 4095)).all() and (found.images[1] == scaled(bright, 0, 4095)).all()
    assert "0 is black and 4095 white" in capsys.readouterr().err
    assert decode(str(tmp_path / "set"), SIDE).levels == found.levels  # from the cache


def test_signed_numbers_and_colours_of_16_bits(tmp_path):
    scan = ramp(-1000, 2000, np.int16)
    assert (decode(folder_of(tmp_path / "ct", scan), SIDE).images[0] == scaled(scan, -1000, 2000)).all()
    colours = np.stack([ramp(0, 4095), ramp(4095, 0), ramp(100, 100)], -1)
    found = decode(folder_of(tmp_path / "rgb", colours), SIDE)
    assert found.levels.range == (0, 4095) and (found.images[0] == scaled(colours, 0, 4095)).all()


@pytest.mark.parametrize("mark", [-9999.0, np.nan, np.inf, -3.4028235e38, 1e6])
def test_floats_with_an_outlier_or_without_data_are_not_black(mark, tmp_path):
    values = ramp(2, 7, np.float32)
    values[0, 0] = mark
    if mark == -9999:
        values[0] = mark  # a whole row
    low, high = decode(folder_of(tmp_path / "set", values), SIDE).levels.range
    assert 2 <= low < 2.7 and 6.9 < high <= 7


def test_a_declared_value_for_no_data_is_ignored(tmp_path):
    values = ramp(10, 20, np.float32)
    values[:4] = 0.0
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack", extratags=[(42113, "s", 0, "0", True)])
    assert read_pixels(str(tmp_path / "x.tif"), "x").no_data == 0
    low, high = decode(str(tmp_path / "x.tif"), SIDE).levels.range
    assert 15 < low < 15.3 and high == 20


def test_a_declared_value_for_no_data_is_ignored_in_colour(tmp_path):
    values = np.random.default_rng(0).integers(100, 300, (SIDE, SIDE, 3), np.uint16)
    values[:2] = 9_999
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="rgb", extratags=[(42113, "s", 0, "9999", True)])
    assert load_images(str(tmp_path / "x.tif"), SIDE)[0, :2].max() == 0
    low, high = decode(str(tmp_path / "x.tif"), SIDE).levels.range
    assert low >= 100 and high < 300


@pytest.mark.parametrize("values", [np.int8([-100, -1, 0, 100]), np.uint32([0, 2**31 - 1, 2**31, 2**32 - 1])])
@pytest.mark.parametrize("order", "<>")
def test_whole_numbers_of_a_tiff_have_the_sign_it_declares(values, order, tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.stack([values] * 4), byteorder=order)
    whole = np.stack([values] * 4).astype(np.float64)
    assert (load_images(str(tmp_path / "x.tif"), 4)[0] == scaled(whole, whole.min(), whole.max())).all()


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32, np.float64, bool])
def test_arrays_of_any_number_are_read_in_their_range(kind):
    values = ramp(0, 1 if kind is bool else 3000).astype(kind)
    top = {bool: 1, np.uint16: 4095, np.int32: 4095}.get(kind, 3000)
    assert (load_images(values, SIDE)[0] == scaled(values, 0, top)).all()
    assert (load_images([values, ramp(0, 255, np.uint8)], SIDE)[1] == scaled(ramp(0, 255, np.uint8), 0, 255)).all()


def test_8_bits_stay_as_they_are(tmp_path, capsys):
    dark = ramp(0, 20, np.uint8)
    found = decode(folder_of(tmp_path / "set", dark, end="png"), SIDE)
    assert found.levels == Levels() and (found.images[0] == dark[..., None]).all()
    assert "black" not in capsys.readouterr().err
    assert (load_images(dark, SIDE)[0] == dark[..., None]).all()


def test_the_range_is_robust():
    def found(*arrays: np.ndarray) -> tuple[float, float] | None:
        return find_range(images.Numbers(array[..., None]) for array in arrays)

    assert found(ramp(0, 65535)) == (0, 65535) and found(ramp(0, 255)) == (0, 255)
    assert found(ramp(0, 1, np.float32)) == (0, 1) and found(ramp(-1, 1, np.float32)) == (-1, 1)
    assert found(ramp(20_000, 30_000)) == (20_000, 30_000) and found(ramp(7, 7)) == (0, 255)
    assert found() is None
    held = ramp(0, 3000)
    held[:4] = 65535
    low, high = found(held)
    assert low > 1000 and high == 3000


# ---- given, kept, refused


def test_a_range_that_is_given_holds(tmp_path, capsys):
    values = ramp(-1000, 2000, np.int16)
    place = folder_of(tmp_path / "set", values)
    found = decode(place, SIDE, levels=Levels.of("-160,240"))
    assert (found.images[0] == scaled(values, -160, 240)).all()
    assert main(["prepare", place, str(tmp_path / "out"), "--side", str(SIDE), "--range", "-160,240"]) == 0
    assert (open_source(tmp_path / "out").images == found.images).all()
    assert open_source(tmp_path / "out").levels.range == (-160, 240)
    assert decode(str(tmp_path / "out"), SIDE).levels.range == (-160, 240)
    with pytest.raises(InputError, match=r"prepared with range \(0.0, 5.0\), got \(-160.0, 240.0\)"):
        decode(str(tmp_path / "out"), SIDE, levels=Levels.of("0,5"))
    for wrong in ("5", "5,1", "a,b", "1,nan", "1,2,3"):
        with pytest.raises(InputError, match=r"range: expected LOW,HIGH"):
            Levels.of(wrong)
    for wrong in ("0", "1,2", "1,2,x", "1.5"):
        with pytest.raises(InputError, match="bands: expected one or three"):
            Levels.of(None, wrong)
    capsys.readouterr()
    assert main(["prepare", place, str(tmp_path / "no"), "--range", "9,1"]) == 2
    assert "--range: expected LOW,HIGH" in capsys.readouterr().err


def test_a_range_that_is_not_the_sets_is_told(tmp_path, capsys):
    model_range = Levels.of("0,4095")
    decode(folder_of(tmp_path / "ct", ramp(-1000, 700, np.int16)), SIDE, levels=model_range)
    assert "0 is black and 4095 white, but the numbers run from -1000 to 700" in capsys.readouterr().err
    decode(folder_of(tmp_path / "unit", ramp(0, 1, np.float32)), SIDE, levels=model_range)
    assert "0 is black and 4095 white, but the numbers run from 0 to 1 " in capsys.readouterr().err
    for name, values in (("dark", ramp(0, 1500)), ("wide", ramp(-1000, 2000, np.int16)), ("own", ramp(0, 4095))):
        decode(folder_of(tmp_path / name, values), SIDE, levels=model_range)
        assert "is black" not in capsys.readouterr().err


def test_jobs_agree_on_the_range(tmp_path):
    place = folder_of(tmp_path / "set", ramp(0, 300), ramp(0, 2500))
    for number in (2, 1):
        prepare(place, tmp_path / "out", side=SIDE, job=Job(number, 2))
    assert merge(tmp_path / "out").levels.range == (0, 4095)
    assert (open_source(tmp_path / "out").images == decode(place, SIDE).images).all()


def test_a_trained_model_keeps_the_range(tmp_path):
    place = folder_of(tmp_path / "set", ramp(0, 4095), ramp(4095, 0), ramp(0, 3000), ramp(100, 2600))
    settings = {"size": "xxs", "side": SIDE, "steps": 1, "batch_images": 2, "layers": 1, "width": 16, "heads": 1}
    model = nextpixel.pretrain(place, out=tmp_path / "run", **settings, sample_images=0, device="cpu")
    assert model.levels.range == (0, 4095)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["range"] == [0, 4095]
    nextpixel.save(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())["nextpixel"]["range"] == [0, 4095]
    loaded = nextpixel.load(tmp_path / "model")
    assert loaded.levels == model.levels
    dark = ramp(0, 500)  # alone it would be taken for 9 bits
    assert (load_images(dark, SIDE, levels=loaded.levels)[0] == scaled(dark, 0, 4095)).all()
    eight = scaled(dark, 0, 4095).astype(np.uint8)
    assert np.array_equal(nextpixel.nll(loaded, dark), nextpixel.nll(loaded, eight))
    assert nextpixel.load().levels == Levels()  # folders from before say nothing


def test_a_probe_keeps_the_range_of_its_images(tmp_path):
    model = nextpixel.load()
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 4096, (8, 32, 32), np.uint16)
    pictures[::2] //= 4
    probe = nextpixel.LinearProbe(model, layer=1).fit(pictures, np.arange(8) % 2)
    probe.save(tmp_path / "probe", model_name="embedded")
    again = nextpixel.LinearProbe.load(tmp_path / "probe", model)
    assert probe.levels.range == again.levels.range == (0, 4095)
    assert np.array_equal(again.predict(pictures[:1]), probe.predict(pictures)[:1])


# ---- bands


def test_bands_are_chosen(tmp_path, capsys):
    values = np.arange(SIDE * SIDE * 5, dtype=np.uint8).reshape(1, SIDE, SIDE, 5)
    np.save(tmp_path / "five.npy", values)
    assert (decode(str(tmp_path / "five.npy"), SIDE).images == values[..., :3]).all()
    assert "bands 1, 2, 3 of 5 are shown" in capsys.readouterr().err
    found = decode(str(tmp_path / "five.npy"), SIDE, levels=Levels.of(None, "5,2,1"))
    assert (found.images == values[..., [4, 1, 0]]).all() and found.levels.bands == (5, 2, 1)
    grey = decode(str(tmp_path / "five.npy"), SIDE, levels=Levels.of(None, "4"))
    assert (grey.images == values[..., [3]]).all()
    with pytest.raises(InputError, match="it has 5 bands, but bands asks for number 6"):
        decode(str(tmp_path / "five.npy"), SIDE, levels=Levels.of(None, "6,2,1"))


@pytest.mark.parametrize("layout", ["contig", "separate"])
def test_bands_of_tiff_files(layout, tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (SIDE, SIDE, 13), np.uint16)
    stored = values if layout == "contig" else np.moveaxis(values, -1, 0)
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="minisblack", planarconfig=layout)
    found = load_images(str(tmp_path / "x.tif"), SIDE, levels=Levels.of(None, "4,3,2"))
    assert (found[0] == scaled(values[..., [3, 2, 1]], 0, 4095)).all()
    four = values[..., :4].astype(np.uint8)
    tifffile.imwrite(tmp_path / "y.tif", four, photometric="rgb", extrasamples=[0])
    assert (load_images(str(tmp_path / "y.tif"), SIDE) == four[..., :3]).all()
    assert (load_images(str(tmp_path / "y.tif"), SIDE, levels=Levels.of(None, "4,2,1")) == four[..., [3, 1, 0]]).all()


def test_what_tifffile_logs_is_not_printed(tmp_path):
    (tmp_path / "x.tif").write_bytes(
        b"II*\0\x08\0\0\0" + struct.pack("<HHHIIi", 1, 256, 4, 1, 8, 8)
    )  # no strips, a loop
    code = f"from nextpixel.images import decode; decode({str(tmp_path / 'x.tif')!r}, 'x.tif')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "cannot read the image x.tif" in run.stderr.splitlines()[-1] and "TiffPage" not in run.stderr


def test_without_tifffile_the_pip_line_is_said(tmp_path, monkeypatch):
    tifffile.imwrite(
        tmp_path / "x.tif", np.ones((8, 8, 13), np.uint16), photometric="minisblack", planarconfig="contig"
    )
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(InputError, match=r"needs tifffile; type: pip install tifffile"):
        load_images(str(tmp_path / "x.tif"), SIDE)


# ---- DICOM


def dicom(values: np.ndarray, **elements: object) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    found = pydicom.Dataset()
    found.file_meta = pydicom.dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = CTImageStorage
    found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    found.Rows, found.Columns = values.shape[-2:]
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated, found.BitsStored, found.HighBit = 16, 16, 15
    found.PixelRepresentation = int(values.dtype.kind == "i")
    found.PixelData = values.tobytes()
    for name, value in elements.items():
        setattr(found, name, value)
    file = io.BytesIO()
    found.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_dicom_files_are_read_by_slope_and_window(tmp_path):
    stored = ramp(0, 3000, np.int16)
    units = {"RescaleSlope": 1, "RescaleIntercept": -1000}
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "IM0001").write_bytes(dicom(stored, **units))
    found = decode(str(tmp_path / "scan"), SIDE)  # without an extension, and without a window
    assert found.levels.range == (-1000, 2000) and (found.images[0] == scaled(stored, 0, 3000)).all()

    window = dicom(stored, **units, WindowCenter=40, WindowWidth=400, VOILUTFunction="LINEAR_EXACT")
    (tmp_path / "window.dcm").write_bytes(window)
    assert (load_images(str(tmp_path / "window.dcm"), SIDE)[0] == scaled(stored, 840, 1240)).all()
    given = load_images(str(tmp_path / "window.dcm"), SIDE, levels=Levels.of("-1000,2000"))
    assert (given[0] == scaled(stored, 0, 3000)).all()

    (tmp_path / "none.dcm").write_bytes(dicom(stored, **units, WindowCenter=40, WindowWidth=0))  # which is none
    assert (load_images(str(tmp_path / "none.dcm"), SIDE)[0] == scaled(stored, 0, 3000)).all()

    negative = dicom(stored, **units, PhotometricInterpretation="MONOCHROME1")
    (tmp_path / "negative.dcm").write_bytes(negative)
    assert (load_images(str(tmp_path / "negative.dcm"), SIDE)[0] == 255 - scaled(stored, 0, 3000)).all()

    frames = np.stack([stored, stored[::-1]])
    (tmp_path / "frames.dcm").write_bytes(dicom(frames, NumberOfFrames=2, **units))
    assert (load_images(str(tmp_path / "frames.dcm"), SIDE)[0] == scaled(stored, 0, 3000)).all()


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.10008.1"])
@pytest.mark.parametrize("installed", [True, False])
def test_dicom_files_without_an_extension_count_beside_other_pictures(
    name: str, installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    (folder / name).write_bytes(dicom(ramp(0, 100)))
    (folder / "README").write_text("of the set")
    if not installed:
        monkeypatch.setattr("nextpixel.images.pixels.find_spec", lambda module: None)
    source = open_source(folder)
    assert list(source.names) == (sorted([name, "a.png"]) if installed else ["a.png"])
    assert source.skipped == ["README: other file"]
    err = capsys.readouterr().err
    assert "1 x other file" in err and ("1 x DICOM (to read it: pip install pydicom)" in err) == (not installed)
    assert len(source.unreadable) == (not installed)


@pytest.mark.parametrize("name", ["scan.dcm", "scan"])
def test_without_pydicom_the_pip_line_is_said(name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(dicom(ramp(0, 100)))
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(InputError, match="DICOM needs pydicom; type: pip install pydicom"):
        load_images(str(tmp_path / name), SIDE)
