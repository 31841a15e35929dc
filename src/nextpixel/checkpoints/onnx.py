"""Export of a convolutional network to ONNX, for programs without torch."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from nextpixel.errors import InputError
from nextpixel.files import new_file, new_output
from nextpixel.network.resnet import ResNet


class _Outputs(nn.Module):
    def __init__(self, model: ResNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, squares: Tensor) -> tuple[Tensor, ...]:
        features = self.model.features(squares)
        return (features,) if self.model.head is None else (features, self.model.head(features))


def export_onnx(model: ResNet, out: str | Path) -> list[str]:
    """Write the new file `out`; returns the names of its outputs: "features" and, with a class head, "logits".

    The input is "squares": uint8 (B, H, W, 3), RGB, for any B; scaling is part of the graph. Features are float32
    (B, D), logits float32 (B, C). Raises InputError where onnx is not installed.
    """
    path = new_output(out)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError('writing an .onnx file needs: pip install "nextpixel[onnx]"', argument="to") from None
    names = ["features"] if model.head is None else ["features", "logits"]
    height, width = model.size
    with new_file(path) as file, warnings.catch_warnings(action="ignore"), _quiet():
        program = torch.onnx.export(
            _Outputs(copy.deepcopy(model).cpu().eval()),
            (torch.zeros(2, height, width, 3, dtype=torch.uint8),),
            input_names=["squares"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        file.write(program.model_proto.SerializeToString())
    return names


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about optional packages."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
