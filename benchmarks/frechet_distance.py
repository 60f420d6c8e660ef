"""Time the Fréchet distance against fadtk's way, which takes a general eigendecomposition and SciPy's square root.

python benchmarks/frechet_distance.py [--dimensions 512] [--frames 2000]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from scipy import linalg

from stable_audio_tools.evaluation.metrics.frechet import frechet_distance, gaussian_from_moments, gaussian_of

Moments = tuple[np.ndarray, np.ndarray]


def by_product_roots(a: Moments, b: Moments) -> float:
    """The formula as it stands, its root found twice: by eigenvectors, and by SciPy as a check."""
    product = a[1] @ b[1]
    values, vectors = linalg.eig(product)
    root = (vectors * np.sqrt(values)) @ linalg.inv(vectors)
    checked = linalg.sqrtm(product)
    if abs(np.trace(root).real - np.trace(checked).real) > 1e-3:
        print("the two roots differ")
    return float(np.square(a[0] - b[0]).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * np.trace(root).real)


def seconds(work: Callable[[], float], repeats: int = 5) -> tuple[float, float]:
    """Value, and median CPU time of several runs after one to warm up."""
    value, times = work(), []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return value, statistics.median(times)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--dimensions", type=int, default=512)
    made.add_argument("--frames", type=int, default=2000)
    return made


def main() -> None:
    arguments = parser().parse_args()
    generator = np.random.default_rng(0)
    scales = 1 / np.sqrt(np.arange(1, arguments.dimensions + 1))
    sets = [generator.normal(size=(arguments.frames, arguments.dimensions)) * scales + shift for shift in (0, 0.1)]
    moments = [(frames.mean(0), np.cov(frames, rowvar=False)) for frames in sets]

    theirs, slow = seconds(lambda: by_product_roots(*moments))
    ours, fast = seconds(lambda: frechet_distance(*(gaussian_from_moments(*pair) for pair in moments)))
    few, quick = seconds(lambda: frechet_distance(*(gaussian_of(frames[:60]) for frames in sets)))
    print(f"{arguments.frames} frames, {arguments.dimensions} dimensions")
    print(f"  product roots   {slow * 1e3:9.1f} ms   {theirs:.9f}")
    print(f"  of P P^T        {fast * 1e3:9.1f} ms   {ours:.9f}   {slow / fast:.0f} times as fast")
    print(f"  from 60 frames  {quick * 1e3:9.1f} ms   {few:.9f}   moments included")


if __name__ == "__main__":
    main()
