"""Fréchet distance against closed forms and SciPy's square root."""

import logging
import time

import numpy as np
import pytest
from scipy import linalg

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.metrics.frechet import (
    FileMoments,
    Gaussian,
    Sides,
    extrapolate,
    frechet_distance,
    gaussian_from_moments,
    gaussian_of,
    warn_of_few_frames,
)


def frames(count: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, width)) @ generator.normal(size=(width, width)) + shift


def by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(c1 @ c2)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c1) + np.trace(c2) - 2 * np.trace(root).real)


def test_closed_form_of_gaussians_that_commute() -> None:
    """Covariances with the same eigenvectors: |m1 - m2|^2 + sum (s1 - s2)^2."""
    generator = np.random.default_rng(0)
    basis, _ = np.linalg.qr(generator.normal(size=(40, 40)))
    s1, s2 = generator.uniform(0.1, 3, size=(2, 40))
    m1, m2 = generator.normal(size=(2, 40))
    a = gaussian_from_moments(m1, basis @ np.diag(s1**2) @ basis.T)
    b = gaussian_from_moments(m2, basis @ np.diag(s2**2) @ basis.T)
    assert frechet_distance(a, b) == pytest.approx(np.square(m1 - m2).sum() + np.square(s1 - s2).sum(), abs=1e-9)


@pytest.mark.parametrize(("count", "width"), [(300, 8), (700, 64), (2000, 128)])
def test_equals_scipys_square_root(count: int, width: int) -> None:
    a, b = frames(count, width, 1), frames(count, width, 2, shift=0.5)
    assert frechet_distance(gaussian_of(a), gaussian_of(b)) == pytest.approx(by_scipy(a, b), rel=1e-6)


@pytest.mark.parametrize("count", [2, 10, 64, 65, 500])
def test_equal_sets_are_at_distance_zero(count: int) -> None:
    a = gaussian_of(frames(count, 64, 3))
    assert 0 <= frechet_distance(a, a) < 1e-9 * a.variance


def test_few_frames_equal_their_covariances() -> None:
    """The short form (frames as factors) against SciPy's roots of the singular covariances themselves."""
    a, b = frames(20, 64, 4), frames(30, 64, 5, shift=1.0)
    short = frechet_distance(gaussian_of(a), gaussian_of(b))
    moments = [gaussian_from_moments(x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)]
    assert short == pytest.approx(frechet_distance(*moments), rel=1e-6)
    root = [np.real(linalg.sqrtm(np.cov(x, rowvar=False) + 1e-12 * np.eye(64))) for x in (a, b)]
    trace = linalg.svdvals(root[0] @ root[1]).sum()
    wanted = np.square(a.mean(0) - b.mean(0)).sum() + sum(np.trace(np.cov(x, rowvar=False)) for x in (a, b)) - 2 * trace
    assert short == pytest.approx(wanted, rel=1e-6)  # the 1e-12 that SciPy needs costs its root


def test_sets_in_planes_that_share_nothing() -> None:
    """Orthogonal supports: the trace of the root is zero."""
    a, b = np.zeros((2, 50, 6))
    a[:, :3], b[:, 3:] = np.random.default_rng(0).normal(size=(2, 50, 3))
    one, other = gaussian_of(a), gaussian_of(b)
    wanted = np.square(one.mean - other.mean).sum() + one.variance + other.variance
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-12)


def test_symmetric_and_free_of_the_order_of_frames() -> None:
    a, b = frames(100, 16, 6), frames(80, 16, 7)
    forth = frechet_distance(gaussian_of(a), gaussian_of(b))
    assert frechet_distance(gaussian_of(b), gaussian_of(a[::-1])) == pytest.approx(forth, rel=1e-12)


def test_float16_frames_keep_their_mean() -> None:
    """Caches of fadtk are float16; a mean taken in that type is off by half a unit at 3000."""
    values = np.random.default_rng(0).integers(2900, 3100, size=(200, 4)).astype(np.float16)
    assert gaussian_of(values).mean == pytest.approx(values.astype(np.float64).mean(0), abs=1e-9)


def test_refusals() -> None:
    with pytest.raises(UserError, match="at least 2 frames, got 1"):
        gaussian_of(np.zeros((1, 4)))
    with pytest.raises(UserError, match="vectors of 4 and 5 numbers cannot be compared"):
        frechet_distance(gaussian_of(frames(9, 4, 0)), gaussian_of(frames(9, 5, 0)))
    with pytest.raises(UserError, match="the statistics are broken"):
        gaussian_from_moments(np.zeros(3), np.full((3, 3), np.nan))


def test_too_few_frames_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_few_frames("set", gaussian_of(frames(20, 8, 0)))
        assert not caplog.records
        warn_of_few_frames("set", gaussian_of(frames(8, 8, 0)))
    assert "8 frames for vectors of 8 numbers; the distance is biased upwards" in caplog.text


def test_ten_times_as_fast_as_a_root_of_the_product() -> None:
    """fadtk's way at 512 dimensions, without the check that it also makes; benchmarks/frechet_distance.py has both."""
    scales = 1 / np.sqrt(np.arange(1, 513))
    a, b = (np.random.default_rng(seed).normal(size=(1000, 512)) * scales for seed in (0, 1))
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)]
    start = time.process_time()
    linalg.sqrtm(moments[0][1] @ moments[1][1])
    slow = time.process_time() - start
    start = time.process_time()
    frechet_distance(*(gaussian_from_moments(*pair) for pair in moments))
    assert 3 * (time.process_time() - start) < slow  # a margin for a busy machine


def test_extrapolation_removes_the_bias_of_few_frames() -> None:
    """Reference moments of N(0, I), one vector per file from N(m, I): the distance is |m|^2."""
    width, shift = 16, 0.5
    generator = np.random.default_rng(0)
    reference = Gaussian(np.zeros(width), np.eye(width), None)
    estimates, plain = [], []
    for seed in range(20):
        files = FileMoments(list(generator.normal(size=(200, 1, width)) + shift))
        found = extrapolate(Sides(reference, files), seed)
        estimates.append(found.value)
        plain.append(found.points[-1][1])
    truth = width * shift**2
    assert np.mean(plain) - truth > 0.1  # the bias to remove
    assert np.mean(estimates) == pytest.approx(truth, abs=4 * np.std(estimates) / np.sqrt(20))
    assert abs(np.mean(estimates) - truth) < 0.5 * (np.mean(plain) - truth)


def test_extrapolation_follows_its_seed() -> None:
    made = list(frames(100, 4, 1)[:, None])
    sides = Sides(gaussian_of(frames(100, 4, 0)), FileMoments(made))
    one = extrapolate(sides, seed=1)
    assert one == extrapolate(sides, seed=1) != extrapolate(sides, seed=2)
    assert one.points[-1] == (
        1.0,
        pytest.approx(frechet_distance(gaussian_of(frames(100, 4, 0)), gaussian_of(np.concatenate(made)))),
    )
    with pytest.raises(UserError, match="at least 8 files, got 7"):
        extrapolate(Sides(gaussian_of(frames(100, 4, 0)), FileMoments(made[:7])))
