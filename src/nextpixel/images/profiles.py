"""Embedded colour profiles, gamma and primaries -> sRGB."""

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "LAB": "LAB"}  # a profile's colour space -> PIL's mode
SRGB_GAMMA = 1 / 2.2
SRGB_CHROMATICITIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # white, red, green, blue; IEC 61966-2-1
NEAR_GAMMA = 0.05  # relative: as libpng, which takes such a file for sRGB
NEAR_CHROMATICITY = 0.005
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_srgb(picture: Image.Image, info: Mapping[str, Any]) -> Image.Image:
    """A picture of 8 bits without opacity -> RGB, by the colours that `info`, PIL's, describes.

    A profile counts before gamma and primaries (PNG), as the PNG specification has it. One that is broken, or of
    another colour space than the pixels, is ignored.
    """
    profile = info.get("icc_profile")
    if isinstance(profile, bytes) or picture.mode == "LAB":
        mode, transform = _transform(profile if picture.mode != "LAB" else None)
        source = picture.convert("RGB") if mode == "RGB" and picture.mode not in ("RGB", "CMYK", "LAB") else picture
        source = source.convert("L") if mode == "L" and source.mode == "1" else source
        if transform is not None and source.mode == mode:
            return transform.apply(source)
        return source if source.mode == "RGB" else source.convert("RGB")
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    if profile is None and "srgb" not in info:
        gamma, chromaticities = _gamma(info), _chromaticities(info)
        if gamma is not None or chromaticities is not None:
            return _by_primaries(picture, gamma, chromaticities)
    return picture


@lru_cache(maxsize=32)
def _transform(profile: bytes | None) -> tuple[str, Any]:
    """PIL's mode of a profile (None: CIELAB) and its transform to sRGB, None if that changes nothing."""
    from PIL import ImageCms

    try:
        opened: Any = ImageCms.createProfile("LAB") if profile is None else ImageCms.getOpenProfile(io.BytesIO(profile))
        space = "LAB" if profile is None else opened.profile.xcolor_space.strip().upper()
        mode = MODES[space]
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode in ("RGB", "L"):
            steps = np.linspace(0, 255, 9).round().astype(np.uint8)
            colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
            test = Image.fromarray(colours if mode == "RGB" else colours[..., 0])
            change = np.asarray(transform.apply(test)).astype(int) - np.asarray(test.convert("RGB"))
            if abs(change).max() <= 1:
                return mode, None
    except (ImageCms.PyCMSError, OSError, KeyError, AttributeError, TypeError, ValueError):
        return "", None
    return mode, transform


def _gamma(info: Mapping[str, Any]) -> float | None:
    gamma = info.get("gamma")
    if not isinstance(gamma, float) or not 0.01 < gamma < 10 or abs(gamma / SRGB_GAMMA - 1) < NEAR_GAMMA:
        return None
    return gamma


def _chromaticities(info: Mapping[str, Any]) -> tuple[float, ...] | None:
    found = info.get("chromaticity")
    if not isinstance(found, tuple) or len(found) != 8 or not all(0 < value < 1 for value in found):
        return None
    near = max(abs(a - b) for a, b in zip(found, SRGB_CHROMATICITIES)) < NEAR_CHROMATICITY
    return None if near else found


def _by_primaries(picture: Image.Image, gamma: float | None, chromaticities: tuple[float, ...] | None) -> Image.Image:
    """RGB with that gamma and those primaries (None: sRGB's) -> sRGB."""
    steps = np.arange(256) / 255
    linear = _to_linear(steps) if gamma is None else steps ** (1 / gamma)
    if chromaticities is None:
        return picture.point(np.rint(_from_linear(linear) * 255).astype(int).tolist() * 3)
    try:
        matrix = np.linalg.inv(_to_d65(SRGB_CHROMATICITIES)) @ _to_d65(chromaticities)
    except np.linalg.LinAlgError:
        return picture
    pixels = np.array(picture)
    for row in pixels:  # row by row, as it takes 16 times the memory
        row[:] = np.rint(_from_linear(np.clip(linear[row] @ matrix.T, 0, 1)) * 255)
    return Image.fromarray(pixels)


def _to_d65(chromaticities: tuple[float, ...]) -> np.ndarray:
    """Linear RGB of those primaries -> XYZ seen under sRGB's white (Bradford)."""
    columns = [(x / y, 1.0, (1 - x - y) / y) for x, y in zip(chromaticities[::2], chromaticities[1::2])]
    white, primaries = np.array(columns[0]), np.array(columns[1:]).T
    to_xyz = primaries * np.linalg.solve(primaries, white)
    x, y = SRGB_CHROMATICITIES[:2]
    cones = (BRADFORD @ (x / y, 1.0, (1 - x - y) / y)) / (BRADFORD @ white)
    adapted: np.ndarray = np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD @ to_xyz
    return adapted


def _to_linear(values: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _from_linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)
