#!/usr/bin/env python3
"""Split Tiny ImageNet's training pictures into those to train on and held-out ones, ten of each class.

    python benchmarks/photos.py data/tiny_imagenet/train.parquet --names words.txt --out data/photos

Writes train.parquet and test.parquet; in each class the last ten pictures of the file are held out. Tiny ImageNet's own
validation pictures are not used. With --names, Tiny ImageNet's words.txt (a line a class: number, tab, names), a column
has captions: the first name of the class and its last word, "Persian cat, cat".

Exit code 2: something is wrong with the request.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fetch_datasets import BadRequest, atomic

HELD_OUT = 10  # of each class


def held_out(labels: np.ndarray) -> np.ndarray:
    """True for the last pictures of each class, (N,) of labels (N,)."""
    found = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        found[np.flatnonzero(labels == label)[-HELD_OUT:]] = True
    return found


def add_captions(table: pa.Table, names: Path) -> pa.Table:
    """The table with captions of its classes, whose numbers its schema has as datasets writes them."""
    lines = (line.split("\t", 1) for line in names.read_text(encoding="utf-8").splitlines())
    named = {number: text.split(",")[0].strip() for number, text in lines}
    features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    numbers = features.get("label", {}).get("names")
    if not numbers or set(numbers) - named.keys():
        raise BadRequest(f"{names}: expected a line for each of the table's classes")
    captions = []
    for number in numbers:
        words = named[number].split()
        captions.append(named[number] + (f", {words[-1]}" if len(words) > 1 else ""))
    return table.append_column("caption", pa.array(captions).take(table["label"].combine_chunks()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="Tiny ImageNet's training pictures, a parquet file with labels")
    parser.add_argument("--names", type=Path, help="Tiny ImageNet's words.txt, for captions")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the two files")
    args = parser.parse_args()
    try:
        if not args.source.is_file():
            raise BadRequest(f"{args.source}: no such file")
        table = pq.read_table(args.source)
        if "label" not in table.column_names:
            raise BadRequest(f"{args.source}: expected a column named label, got {', '.join(table.column_names)}")
        if args.names is not None:
            table = add_captions(table, args.names)
    except (BadRequest, ValueError, OSError, pa.ArrowInvalid) as error:
        print(f"photos: {error}", file=sys.stderr)
        return 2
    test = held_out(table["label"].to_numpy())
    args.out.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("train", ~test), ("test", test)):
        with atomic(args.out / f"{name}.parquet") as part:
            pq.write_table(table.filter(pa.array(chosen)), part)
        print(f"{args.out / name}.parquet: {chosen.sum():,} pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
