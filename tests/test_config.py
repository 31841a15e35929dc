import dataclasses

import pytest
import torch

from nextpixel import SIZES, ImageGPT, ImageGPTConfig, InputError
from nextpixel.config import LEARNING_RATES, PretrainConfig, replace_checked

# Exact counts for 512 colours and no class head; at side 32 those of S, M, L and XL are the paper's own.
PARAMETERS = {
    ("xxs", 32): 3_050_112,
    ("xs", 32): 6_820_352,
    ("s", 32): 76_571_648,
    ("m", 32): 455_157_760,
    ("l", 32): 1_362_250_752,
    ("xl", 32): 6_801_438_720,
    ("s", 48): 77_227_008,
    ("m", 48): 456_468_480,
    ("l", 48): 1_364_216_832,
    ("xl", 48): 6_805_370_880,
    ("s", 64): 78_144_512,
    ("m", 64): 458_303_488,
    ("l", 64): 1_366_969_344,
    ("xl", 64): 6_810_875_904,
}


@pytest.mark.parametrize(("size", "side"), PARAMETERS)
def test_sizes_have_exactly_the_published_number_of_parameters(size: str, side: int) -> None:
    config = dataclasses.replace(SIZES[size], side=side)
    with torch.device("meta"):
        model = ImageGPT(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameters == PARAMETERS[size, side]


def test_every_size_has_a_learning_rate() -> None:
    assert LEARNING_RATES.keys() == SIZES.keys()


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"width": 10, "heads": 4}, {"side": -1}, {"colors": 1.5}])
def test_impossible_shapes_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match=r"expected|must"):
        ImageGPTConfig(**{"layers": 1, "width": 8, "heads": 2, "side": 4, "colors": 4} | wrong)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown argument 'lerning_rate'; did you mean learning_rate"):
        replace_checked(PretrainConfig(), {"lerning_rate": 0.1})


@pytest.mark.parametrize("values", [{"steps": "many"}, {"steps": True}, {"augment": "rotate"}, {"steps": 1.5}])
def test_a_setting_of_the_wrong_type_is_refused(values: dict) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(values))}: expected "):
        replace_checked(PretrainConfig(), values)
