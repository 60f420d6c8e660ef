"""Time and memory of the search for copies: python benchmarks/dedup.py --rows 2000 5000 10000 20000

Rows are histograms of nine codebooks of 1,024 codes, as those of two minutes of the 44 kHz Descript Audio Codec are:
9,216 wide, of one family but not alike, with one copy among every fifty. `greedy` is the loop that the search takes the
place of: each row that was not dropped is multiplied with all later ones, in chunks of 2,048, and what is alike is
dropped.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from stable_audio_tools.core.devices import pick_device
from stable_audio_tools.core.packages import available
from stable_audio_tools.dedup.copies import single_link
from stable_audio_tools.dedup.similarity import Features, find_similar, histogram_features

T = TypeVar("T")
THRESHOLD = 0.985
CODEBOOKS, ENTRIES = 9, 1024
CHUNK = 2048


class Cost(NamedTuple):
    """Seconds on the clock, and of all cores together, which others at work on the machine disturb less."""

    wall: float
    processor: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} s ({self.processor:.1f} s of all cores)"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rows", type=int, nargs="+", default=[2_000, 5_000, 10_000, 20_000])
    made.add_argument("--device", default="cpu", help="cpu or cuda, for both")
    made.add_argument("--skip-greedy", action="store_true", help="time the search of this package only")
    made.add_argument(
        "--greedy-every", type=int, default=1, metavar="N", help="take every Nth step of the loop, and N times its time"
    )
    made.add_argument("--faiss", action="store_true", help="time faiss, too")
    return made


def main() -> int:
    arguments = parser().parse_args()
    device = pick_device(arguments.device)
    print(f"{torch.get_num_threads()} threads, {device}, torch {torch.__version__}")
    for rows in arguments.rows:
        features, copies = synthetic(rows)
        cost, dropped = timed(search, features, device)
        assert dropped == copies, "not the planted copies"
        line = f"{rows:,} rows ({features.nbytes / 1e9:.2f} GB): {cost}, {memory():.2f} GB at most in this process"
        if arguments.faiss and available("faiss"):
            line += f"; faiss {timed(with_faiss, features)[0]}"
        if not arguments.skip_greedy:
            every = arguments.greedy_every
            slow, greedy_dropped = timed(greedy, features, device, every)
            slow = Cost(every * slow.wall, every * slow.processor)
            line += (
                f"; greedy {slow}: {slow.wall / cost.wall:.1f} ({slow.processor / cost.processor:.1f}) times as long"
            )
            assert device.type == "cuda" or every > 1 or greedy_dropped == dropped, "the loop drops other rows"
        print(line, flush=True)
    return 0


def synthetic(rows: int) -> tuple[Features, set[int]]:
    """Histograms, and which of them repeat an earlier one but for a little noise."""
    rng = np.random.default_rng(0)
    common = rng.gamma(0.5, size=(CODEBOOKS, ENTRIES)).astype(np.float32)
    features, copies = np.empty((rows, CODEBOOKS * ENTRIES), np.float32), set()
    for row in range(rows):
        noise = rng.standard_exponential(common.shape, np.float32)
        if row % 50 == 49:
            original = features[rng.integers(row // 50 * 50, row)].reshape(common.shape)
            counts = original * (1 + 0.02 * noise)
            copies.add(row)
        else:
            counts = common * noise
        features[row] = histogram_features(counts)
    return features, copies


def search(features: Features, device: torch.device) -> set[int]:
    pairs = find_similar(features, THRESHOLD, device=device, use_faiss=False)
    groups = single_link(len(features), list(zip(pairs.first.tolist(), pairs.second.tolist())))
    return {row for group in groups for row in group[1:]}


def greedy(features: Features, device: torch.device, every: int = 1) -> set[int]:
    """Half precision on a GPU, single on the CPU."""
    table = torch.from_numpy(features).to(device, torch.float16 if device.type == "cuda" else torch.float32)
    dropped: NDArray[np.bool_] = np.zeros(len(features), bool)
    for row in range(0, len(features), every):
        if dropped[row]:
            continue
        for start in range(row + 1, len(features), CHUNK):
            likeness = table[start : start + CHUNK] @ table[row]
            dropped[start + (likeness >= THRESHOLD).nonzero().flatten().cpu().numpy()] = True
    return {int(row) for row in dropped.nonzero()[0]}


def with_faiss(features: Features) -> int:
    return len(find_similar(features, THRESHOLD, use_faiss=True))


def timed(work: Callable[..., T], *arguments: Any) -> tuple[Cost, T]:
    wall, processor = time.perf_counter(), time.process_time()
    result = work(*arguments)
    return Cost(time.perf_counter() - wall, time.process_time() - processor), result


def memory() -> float:
    """Peak of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    sys.exit(main())
