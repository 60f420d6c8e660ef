"""Bias and coverage of every score on simulated sets with a known truth: files of correlated windows."""

from typing import NamedTuple

import numpy as np
import pytest

from stable_audio_tools.evaluation.metrics.frechet import FileMoments, Sides, extrapolate, frechet_distance, gaussian_of
from stable_audio_tools.evaluation.metrics.kernel import kernel_distance
from stable_audio_tools.evaluation.metrics.neighbours import MANIFOLD_SCORES, manifold_intervals, manifold_scores
from stable_audio_tools.evaluation.metrics.resampling import compare_paired, jackknife

RUNS = 100
ALIKE = 0.7  # correlation of two windows of a file


class Case(NamedTuple):
    """Sizes of the simulated sets, and the shift of the generated law."""

    references: int
    generated: int
    windows: int
    width: int
    shift: float

    @property
    def truth(self) -> float:
        """Fréchet distance of N(0, I) and N(shift, I)."""
        return self.width * self.shift**2


CASES = [Case(30, 30, 10, 8, 0.0), Case(40, 40, 25, 16, 0.0), Case(30, 30, 10, 8, 0.3), Case(60, 40, 10, 16, 0.3)]


def draw(count: int, windows: int, width: int, generator: np.random.Generator, shift: float = 0.0) -> list[np.ndarray]:
    """Files of windows from N(shift, I), which share a part."""
    return [
        np.sqrt(ALIKE) * generator.normal(size=(1, width))
        + np.sqrt(1 - ALIKE) * generator.normal(size=(windows, width))
        + shift
        for _ in range(count)
    ]


def draw_pair(case: Case, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    return (
        draw(case.references, case.windows, case.width, generator),
        draw(case.generated, case.windows, case.width, generator, case.shift),
    )


def covers(intervals: list[tuple[float, float]], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_frechet_distances(case: Case) -> None:
    """The plain distance is biased upwards; its interval, `corrected` and `fad_inf` are not."""
    plain, corrected, lines, intervals, line_intervals = [], [], [], [], []
    for seed in range(RUNS):
        x, y = draw_pair(case, seed)
        sides = Sides(FileMoments(x), FileMoments(y))
        found, line = sides.estimate(seed), extrapolate(sides, seed)
        assert found is not None
        assert found.value == pytest.approx(
            frechet_distance(gaussian_of(np.concatenate(x)), gaussian_of(np.concatenate(y))), rel=1e-6
        )
        plain.append(found.value)
        corrected.append(found.corrected)
        lines.append(line.value)
        intervals.append(found.interval())
        line_intervals.append(found.interval(line.value, line.error))
    bias = np.mean(plain) - case.truth
    left = [np.mean(found) - case.truth for found in (corrected, lines)]
    print(f"bias {bias:.3f}, corrected {left[0]:.3f}, fad_inf {left[1]:.3f}")
    print(f"coverage {covers(intervals, case.truth):.2f}, of fad_inf {covers(line_intervals, case.truth):.2f}")
    assert bias > 0.8
    assert abs(left[0]) < 0.1 * bias and abs(left[1]) < 0.15 * bias
    for found_intervals, values in ((intervals, corrected), (line_intervals, lines)):
        assert 0.9 <= covers(found_intervals, case.truth) <= 0.99
        width = np.mean([high - low for low, high in found_intervals])
        assert width < 3 * 2 * 1.96 * np.std(values)  # not wide beyond need


@pytest.mark.parametrize("kernel", ["cubic", "gaussian"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_distances(case: Case, kernel: str) -> None:
    found = [kernel_distance(*draw_pair(case, seed), seed, kernel) for seed in range(RUNS)]  # type: ignore[arg-type]
    values = np.array([one.value for one in found])
    truth = 0.0 if not case.shift else float(values.mean())
    intervals = [(one.low, one.high) for one in found if one.low is not None and one.high is not None]
    print(f"mean {values.mean():.4f} +- {values.std() / RUNS**0.5:.4f}, coverage {covers(intervals, truth):.2f}")
    if not case.shift:
        assert abs(values.mean()) < 3 * values.std() / np.sqrt(RUNS)
    # At distance 0 the jackknife of this statistic is conservative: its error is up to the square root of 2 too large.
    assert covers(intervals, truth) >= 0.9
    assert np.mean([high - low for low, high in intervals]) < 1.7 * 2 * 2.1 * values.std()


def test_windows_of_a_file_do_not_count_as_independent() -> None:
    """Thirty files of ten windows from one law: counting all windows as independent finds a distance every time."""
    case = CASES[0]
    every_window = [
        kernel_distance(*([window[None] for file in files for window in file] for files in draw_pair(case, seed)), seed)
        for seed in range(5)
    ]
    assert all(one.low is not None and one.low > 0 for one in every_window)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_neighbour_scores(case: Case) -> None:
    """The truth is the score that sets of these sizes have on average."""
    values: dict[str, list[float]] = {name: [] for name in MANIFOLD_SCORES}
    intervals: dict[str, list[tuple[float, float]]] = {name: [] for name in MANIFOLD_SCORES}
    for seed in range(RUNS):
        x, y = (np.stack([file.mean(0) for file in files]) for files in draw_pair(case, seed))
        scores, found = manifold_scores(x, y), manifold_intervals(x, y, seed=seed)
        for name in MANIFOLD_SCORES:
            values[name].append(scores[name])
            intervals[name].append(found[name])
    for name in MANIFOLD_SCORES:
        coverage = covers(intervals[name], float(np.mean(values[name])))
        print(f"{name} {np.mean(values[name]):.3f}, coverage {coverage:.2f}")
        assert coverage >= 0.9


def test_too_few_files_have_no_interval() -> None:
    x, y = draw_pair(Case(3, 8, 4, 2, 0.0), 0)
    assert Sides(FileMoments(x), FileMoments(y)).estimate() is None
    assert manifold_intervals(np.zeros((6, 2)), np.zeros((20, 2))) == {}


def test_jackknife_of_a_mean_is_the_textbook_error() -> None:
    values = np.random.default_rng(0).normal(size=15)
    (found,) = jackknife(lambda _, w: np.array([values @ w / w.sum()]), 0, 15) or []
    assert found.error == pytest.approx(values.std(ddof=1) / np.sqrt(15))
    assert found.corrected == pytest.approx(values.mean()) and found.freedom == 14


def test_blocks_of_many_files_have_the_moments_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    from stable_audio_tools.evaluation.metrics import frechet

    files = draw(50, 3, 4, np.random.default_rng(0))
    monkeypatch.setattr(frechet, "_MOST_NUMBERS", 320)  # 20 blocks of 4 x 4
    blocks = FileMoments(files)
    assert (blocks.blocks, blocks.files) == (20, 50)
    whole, expected = blocks.gaussian(np.ones(20)), gaussian_of(np.concatenate(files))
    assert whole.mean == pytest.approx(expected.mean) and frechet_distance(whole, expected) < 1e-12


# ------------------------------------------------------------------ significance


def compare(shift_a: float, shift_b: float, seed: int) -> float:
    """p-value of a paired comparison of two checkpoints on the same 40 prompts by their Fréchet distance."""
    generator = np.random.default_rng(seed)
    reference = FileMoments(draw(60, 5, 4, generator))
    prompts = [0.6 * generator.normal(size=(1, 4)) for _ in range(40)]
    sets = [
        FileMoments([
            shift + prompt + 0.8 * (0.8 * generator.normal(size=(1, 4)) + 0.6 * generator.normal(size=(5, 4)))
            for prompt in prompts
        ])
        for shift in (shift_a, shift_b)
    ]  # fmt: skip
    a, b = (Sides(reference, one) for one in sets)
    found = compare_paired(lambda r, w: a.distance(r, w) - b.distance(r, w), 60, 40, seed, resamples=20)
    assert found.p > 0.2 or (found.share_below > 0.5) == (found.difference < 0)
    return found.p if found.difference <= 0 else -found.p


def test_a_better_checkpoint_is_significant_and_an_equal_one_is_not() -> None:
    better = [compare(0.3, 1.0, seed) for seed in range(10)]
    assert all(0 < p < 0.05 for p in better)  # negative if the wrong one wins
    equal = [abs(compare(0.6, 0.6, seed)) for seed in range(120)]
    print(f"significant among equal checkpoints: {np.mean(np.array(equal) < 0.05):.2f}")
    assert np.mean(np.array(equal) < 0.05) <= 0.08


def test_two_equal_sets_are_better_equally_often() -> None:
    found = compare_paired(lambda r, w: np.zeros(1), 0, 10, resamples=100)
    assert (found.share_below, found.p, found.difference) == (0.5, 1.0, 0.0)
