#!/usr/bin/env python3
"""Make one sheet of sprites as an artist would have it: 704 icons of 24 x 24 pixels, black on transparent.

    python benchmarks/sprite_sheet.py --out data/sprites

Needs node and npm. The icons are those of the npm package pixelarticons (Gerrit Halfmann, MIT licence), without its
sharp-cornered doubles. Written are

    sheet.png    768 x 528 pixels: 32 icons a row, in the order of their names
    sheet.csv    file, row, column, caption: "alarm clock" for alarm-clock.svg
    icons/       the same icons as single files, alarm-clock.png

Exit code 2: something is wrong with the request; 1: a download or the drawing failed.
"""

import argparse
import csv
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from fetch_datasets import BadRequest, DownloadFailed, atomic, png, run

PACKAGES = ("pixelarticons@2.4.1", "@resvg/resvg-js@2.6.2")
SIDE, COLUMNS = 24, 32
RASTERISE = """
import fs from "node:fs";
import { Resvg } from "@resvg/resvg-js";
const [folder, side] = process.argv.slice(2);
const names = fs.readdirSync(folder).filter((name) => name.endsWith(".svg")).sort();
const fitTo = { mode: "width", value: Number(side) };
const draw = (name) => {
  const svg = fs.readFileSync(`${folder}/${name}`, "utf8").replace("<svg ", '<svg shape-rendering="crispEdges" ');
  return new Resvg(svg, { fitTo }).render().pixels;
};
fs.writeFileSync("pixels.bin", Buffer.concat(names.map(draw)));
fs.writeFileSync("names.txt", names.join("\\n"));
"""


def rasterise(folder: Path, svgs: str, side: int) -> dict[str, np.ndarray]:
    """The pictures of a folder of SVG files, without anti-aliasing, uint8 (side, side, 4), by name.

    `folder` has the npm package of resvg, and `svgs` is a path inside it.
    """
    (folder / "rasterise.mjs").write_text(RASTERISE)
    run(["node", "rasterise.mjs", svgs, str(side)], folder)
    pixels = np.fromfile(folder / "pixels.bin", np.uint8).reshape(-1, side, side, 4)
    names = (folder / "names.txt").read_text().splitlines()
    return {Path(name).stem: picture for name, picture in zip(names, pixels, strict=True)}


def draw() -> dict[str, np.ndarray]:
    """The icons, uint8 (24, 24, 4), by name."""
    with tempfile.TemporaryDirectory() as name:
        run(["npm", "install", "--silent", "--no-save", *PACKAGES], Path(name))
        icons = rasterise(Path(name), "node_modules/pixelarticons/svg", SIDE)
    return {name: icon for name, icon in icons.items() if "-sharp" not in name}


def make(out: Path) -> None:
    icons = draw()
    names, pixels = list(icons), np.stack(list(icons.values()))
    rows = -(-len(names) // COLUMNS)
    cells = np.zeros((rows * COLUMNS, SIDE, SIDE, 4), np.uint8)
    cells[: len(pixels)] = pixels
    sheet = cells.reshape(rows, COLUMNS, SIDE, SIDE, 4).swapaxes(1, 2).reshape(rows * SIDE, COLUMNS * SIDE, 4)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file", "row", "column", "caption"])
    writer.writerows(["sheet.png", *divmod(i, COLUMNS), name.replace("-", " ")] for i, name in enumerate(names))
    files = {"sheet.png": png(sheet), "sheet.csv": table.getvalue().encode()}
    files |= {f"icons/{name}.png": png(icon) for name, icon in icons.items()}
    for file, content in files.items():
        with atomic(out / file) as temporary:
            temporary.write_bytes(content)
    colors = len(np.unique(pixels.reshape(-1, 4), axis=0))
    print(f"{out / 'sheet.png'}: {len(names)} sprites of {SIDE} x {SIDE} in {rows} rows, {colors} RGBA colours")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/sprites"), help="default: data/sprites")
    args = parser.parse_args(argv)
    try:
        make(args.out)
    except BadRequest as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (DownloadFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
