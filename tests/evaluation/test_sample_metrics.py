import importlib.util
import math
from collections.abc import Iterator

import numpy as np
import pytest
import sklearn

from nextpixel.evaluation.sample_metrics import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    nearest,
    precision_recall,
)


def normal(count: int, width: int = 4, seed: int = 0, mean: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return (mean + scale * np.random.default_rng(seed).standard_normal((count, width))).astype(np.float32)


def covariance(width: int, seed: int) -> np.ndarray:
    factor = np.random.default_rng(seed).standard_normal((width, width + 2))
    return factor @ factor.T


def with_moments(mean: np.ndarray, covariance: np.ndarray, count: int = 20, seed: int = 0) -> np.ndarray:
    """Rows (count, D) whose mean and covariance are exactly these."""
    white = np.random.default_rng(seed).standard_normal((count, len(mean)))
    white = np.linalg.qr(white - white.mean(0))[0] * (count - 1) ** 0.5
    values, vectors = np.linalg.eigh(covariance)
    return mean + white @ (vectors * np.sqrt(np.maximum(values, 0))).T


@pytest.fixture
def small_blocks() -> Iterator[None]:
    """scikit-learn works on a few rows at a time."""
    with sklearn.config_context(working_memory=1e-3):
        yield


# ---- Frechet


def test_frechet_distance_of_gaussians_in_closed_form() -> None:
    """Along common axes it is |m - m'|^2 + the sum of (s - s')^2; a turn of both changes nothing."""
    deviations, deviations2 = np.array([1.0, 2.0, 0.5]), np.array([3.0, 2.0, 0.0])
    mean, mean2 = np.array([1.0, 0.0, -2.0]), np.array([0.0, 2.0, 0.0])
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    for axes in (np.eye(3), turn):
        one, two = ((axes * values**2) @ axes.T for values in (deviations, deviations2))
        expected = 1 + 4 + 4 + (2.0**2 + 0 + 0.5**2)
        x, y = with_moments(axes @ mean, one, seed=1), with_moments(axes @ mean2, two, seed=2)
        assert frechet_distance(x, y) == pytest.approx(expected, abs=1e-7)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    from scipy.linalg import sqrtm

    one, two = covariance(5, 1), covariance(5, 2)
    expected = np.trace(one + two - 2 * sqrtm(one @ two).real)
    x, y = with_moments(np.zeros(5), one, seed=1), with_moments(np.zeros(5), two, seed=2)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_samples_nears_the_closed_form() -> None:
    x, y = normal(20_000, 3, 0), normal(20_000, 3, 1, mean=1.0, scale=2.0)
    assert frechet_distance(x, y) == pytest.approx(3 * (1 + 1), rel=0.05)  # four standard errors


@pytest.mark.parametrize("counts", [(30, 40), (30, 3), (3, 4), (2, 50)])
def test_frechet_distance_of_features_is_that_of_their_moments(counts: tuple[int, int]) -> None:
    """Whether there are more rows than columns (8) or fewer."""
    x, y = normal(counts[0], 8, 1), normal(counts[1], 8, 2, mean=0.3, scale=1.5)
    (mean, cov), (mean2, cov2) = ((z.mean(0), np.cov(z, rowvar=False)) for z in (x.astype(float), y.astype(float)))
    root = np.sqrt(np.maximum(np.linalg.eigvals(cov @ cov2).real, 0))
    expected = ((mean - mean2) ** 2).sum() + np.trace(cov + cov2) - 2 * root.sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_is_stable_with_features_that_depend_on_each_other() -> None:
    x = np.repeat(normal(50, 2) * 1e3, 40, axis=1)  # rank 2 of 80
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-5 * float(x.var(0).sum()))
    assert frechet_distance(x, x + 2) == pytest.approx(80 * 4, rel=1e-3)


# ---- kernel


def test_kernel_distance_is_the_double_sum(small_blocks: None) -> None:
    x, y = normal(20, 3, 1).astype(float), normal(23, 3, 2, mean=0.5).astype(float)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    def among(z: np.ndarray) -> float:
        return float(np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]))

    expected = among(x) + among(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    value, error = kernel_distance(x, y, subsets=1)
    assert value == pytest.approx(expected, rel=1e-9) and math.isnan(error)


def test_kernel_distance_is_unbiased_and_its_error_is_one() -> None:
    """Of equal distributions the mean over many draws is 0, and the errors are as large as the spread over draws."""
    found = [kernel_distance(normal(100, 4, seed), normal(100, 4, 1_000 + seed), seed=seed) for seed in range(200)]
    values, errors = np.array(found).T
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)
    assert values.min() < 0


def test_kernel_distance_by_hand() -> None:
    """In one dimension E (x y + 1)^3 of a normal x of mean m and variance 1 is known from three moments."""

    def expected(m: float, n: float) -> float:
        moments = [(1, m, m * m + 1, m**3 + 3 * m) for m in (m, n)]
        return sum(c * a * b for c, a, b in zip((1, 3, 3, 1), *moments))

    true = expected(0, 0) + expected(1, 1) - 2 * expected(0, 1)
    value, error = kernel_distance(normal(3_000, 1, 0), normal(3_000, 1, 1, mean=1.0))
    assert abs(value - true) < 4 * error and error < 0.1 * true


def test_the_seed_cuts_the_subsets() -> None:
    x, y = normal(50, 4, 1), normal(40, 4, 2)
    assert kernel_distance(x, y, seed=1) == kernel_distance(x, y, seed=1) != kernel_distance(x, y, seed=2)
    with pytest.raises(ValueError, match="got 50 and 19"):
        kernel_distance(x, y[:19])


# ---- precision, recall, density, coverage


def test_manifold_metrics_are_those_of_loops(small_blocks: None) -> None:
    x, y = normal(40, 2, 1), normal(33, 2, 2, mean=0.7)
    far = [[float(np.linalg.norm(a.astype(float) - b)) for b in y] for a in x]

    def radii(z: np.ndarray, k: int) -> list[float]:
        return [sorted(float(np.linalg.norm(a.astype(float) - b)) for b in z)[k] for a in z]

    x3, y3, x5 = radii(x, 3), radii(y, 3), radii(x, 5)
    precision = np.mean([any(far[i][j] <= x3[i] for i in range(40)) for j in range(33)])
    recall = np.mean([any(far[i][j] <= y3[j] for j in range(33)) for i in range(40)])
    assert precision_recall(x, y) == pytest.approx((precision, recall))
    density = sum(far[i][j] < x5[i] for i in range(40) for j in range(33)) / (5 * 33)
    coverage = np.mean([any(far[i][j] < x5[i] for j in range(33)) for i in range(40)])
    assert density_coverage(x, y) == pytest.approx((density, coverage))
    assert 0 < recall < 1 and 0 < coverage < 1 and precision < 1


def test_coverage_of_equal_distributions() -> None:
    """Naeem et al. 2020, appendix: 1 - (M-1)...(M-k) / ((2M-1)...(2M-k)) for M images each."""
    density, coverage = density_coverage(normal(2_000, 8, 1), normal(2_000, 8, 2))
    assert coverage == pytest.approx(1 - 2**-5, abs=0.01) and density == pytest.approx(1, abs=0.03)


def test_far_away_nothing_overlaps() -> None:
    x, y = normal(50), normal(50, seed=1, mean=100.0)
    assert precision_recall(x, y) == (0, 0) and density_coverage(x, y) == (0, 0)


@pytest.mark.parametrize("width", [3, 200])
def test_identical_sets(width: int) -> None:
    x = normal(60, width)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9 * width)
    assert precision_recall(x, x) == (1, 1)
    assert density_coverage(x, x) == pytest.approx((1, 1), abs=0.2 / 5)
    value, _ = kernel_distance(x, x, subsets=1)
    assert value < 0  # the pairs of a row with itself count between the sets alone


def test_too_few_rows_are_told() -> None:
    with pytest.raises(ValueError, match="more than 3 rows, got 3"):
        precision_recall(normal(3), normal(9))


# ---- nearest


@pytest.mark.parametrize("sizes", [[30], [1, 2, 27], [10, 10, 10]])
def test_nearest_rows_over_blocks(sizes: list[int], small_blocks: None) -> None:
    x, y = normal(12, 3, 1), normal(30, 3, 2)
    y[20] = x[4]
    all_distances = np.linalg.norm(x[:, None].astype(float) - y[None], axis=2)
    places, distances = nearest(x, np.split(y, np.cumsum(sizes)[:-1]), k=4)
    assert np.array_equal(places, np.argsort(all_distances, axis=1)[:, :4])
    assert np.allclose(distances, np.sort(all_distances, axis=1)[:, :4])
    assert (places[4, 0], distances[4, 0]) == (20, 0.0)


def test_nearest_of_too_small_a_set_and_of_ties() -> None:
    places, distances = nearest(np.zeros((1, 2)), [np.ones((2, 2)), np.ones((1, 2))], k=5)
    assert places.tolist() == [[0, 1, 2, -1, -1]] and np.isinf(distances[0, 3:]).all()


# ---- another implementation


torchmetrics = pytest.mark.skipif(
    importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is not installed"
)


@torchmetrics
@pytest.mark.filterwarnings("ignore:Metric `:UserWarning")  # that it keeps all features
@pytest.mark.parametrize("counts", [(300, 200), (20, 25)])
def test_torchmetrics_gives_the_same(counts: tuple[int, int]) -> None:
    """Its classes with features of our own (its image networks would need torchvision)."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Given(torch.nn.Module):
        num_features = 32

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows

    x, y = normal(counts[0], 32, 1), normal(counts[1], 32, 2, mean=0.2, scale=1.3)
    fid = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    for rows, real in ((x, True), (y, False)):
        fid.update(torch.from_numpy(rows).double(), real=real)
    assert frechet_distance(x, y) == pytest.approx(fid.compute().item(), rel=1e-4)

    size = min(counts)  # one subset of all rows: without the choice of subsets
    kid = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=size).set_dtype(torch.float64)
    for rows, real in ((x[:size], True), (y[:size], False)):
        kid.update(torch.from_numpy(rows).double(), real=real)
    value, _ = kernel_distance(x[:size], y[:size], subsets=1)
    assert value == pytest.approx(kid.compute()[0].item(), rel=1e-4)
