"""Drawing stays faster than transformers: `pytest -m speed` on a machine that does nothing else."""

import pytest

from nextpixel.bench import bench, random_model

pytest.importorskip("transformers")


@pytest.mark.speed
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(("batch", "least"), [(1, 3.0), (8, 2.5), (32, 2.5)])
def test_s_draws_faster_than_transformers_best(batch: int, least: float) -> None:
    result = bench(random_model("s"), ["decode"], [batch], repeats=3, pixels=12, against=True)
    assert result["rows"][0]["ratio"] >= least
