"""What every process does that torchrun starts for a test: the commands of a JSON file, one after the other."""

import atexit
import json
import os
import sys
from pathlib import Path

from nextpixel.cli import main
from nextpixel.data.decoded import Batches


def record_images(folder: Path) -> None:
    """Write which images each batch of this process shows."""
    original = Batches.__call__

    def recorded(self: Batches, step: int) -> object:
        with (folder / f"seen-{os.environ['RANK']}.jsonl").open("a") as file:
            file.write(json.dumps([step, self.numbers(step).tolist()]) + "\n")
        return original(self, step)

    Batches.__call__ = recorded  # type: ignore[method-assign]


def record_threads(folder: Path) -> None:
    """Write the names of the threads that there still are when all that was registered for the end is done."""
    tasks = Path("/proc/self/task")
    if tasks.exists():  # Linux
        names = [(task / "comm").read_text().strip() for task in tasks.iterdir()]
        (folder / f"threads-{os.environ['RANK']}.json").write_text(json.dumps(names))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    atexit.register(record_threads, folder)
    record_images(folder)
    for command in json.loads((folder / "commands.json").read_text()):
        if code := main(command):
            sys.exit(code)
