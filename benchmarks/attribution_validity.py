"""Do attribution scores mean anything? Planted duplicates, and the linear datamodeling score: minutes on two cores.

python benchmarks/attribution_validity.py --workers 2 [--subsets 96] [--out outputs/attribution_validity.json]

Items are short "latents": a few sinusoids of one of six classes, with amplitudes and phases of their own, and noise.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.attribution.engines import HookEngine
from stable_audio_tools.attribution.features import Features
from stable_audio_tools.attribution.lds import LDS, choose_regulariser, linear_datamodeling_score
from stable_audio_tools.attribution.projection import make_projection
from stable_audio_tools.attribution.scoring import DEFAULT_GRID, Member, score_by_products, score_member
from stable_audio_tools.attribution.scoring_run import random_scores, similarity
from stable_audio_tools.attribution.task import AttributedSample, DiffusionTask, FeatureRecipe, find_measure
from stable_audio_tools.attribution.validation import make_plan
from stable_audio_tools.models.diffusion.objectives import RECTIFIED_FLOW
from stable_audio_tools.models.dit import DiffusionTransformer

CHANNELS, FRAMES, CLASSES, BATCH = 4, 16, 6, 16
OBJECTIVE = RECTIFIED_FLOW


@dataclass(frozen=True)
class Setting:
    """How much is done."""

    items: int = 96
    queries: int = 20
    subsets: int = 96
    steps: int = 300
    seeds: int = 1
    dim: int = 1024
    timesteps: int = 50


def make_items(count: int, seed: int) -> Tensor:
    """(count, channels, frames)"""
    rng = torch.Generator().manual_seed(seed)
    classes = torch.Generator().manual_seed(0)
    frequencies = 1 + 4 * torch.rand(CLASSES, CHANNELS, 2, generator=classes)
    time_axis = torch.linspace(0, 1, FRAMES)
    items = []
    for index in range(count):
        phases = 2 * torch.pi * torch.rand(CHANNELS, 2, 1, generator=rng)
        loudness = 0.3 + torch.rand(CHANNELS, 2, 1, generator=rng)
        waves = loudness * torch.sin(2 * torch.pi * frequencies[index % CLASSES][..., None] * time_axis + phases)
        items.append(waves.sum(1) + 0.1 * torch.randn(CHANNELS, FRAMES, generator=rng))
    return torch.stack(items)


def make_network(seed: int) -> torch.nn.Module:
    """A diffusion transformer of 0.04 million parameters."""
    torch.manual_seed(seed)
    return DiffusionTransformer(io_channels=CHANNELS, embed_dim=32, depth=2, num_heads=2)


def train(items: Tensor, steps: int, seed: int) -> torch.nn.Module:
    """Denoising at uniform noise levels; the same seed, the same start and noise, whatever the items."""
    network = make_network(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        clean = items[torch.randint(len(items), (BATCH,), generator=rng)]
        t, noise = torch.rand(BATCH, generator=rng), torch.randn(clean.shape, generator=rng)
        noisy, target = OBJECTIVE.corrupt(clean, noise, t)
        loss = (network(noisy, t) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def samples_of(items: Tensor, kind: str) -> list[AttributedSample]:
    return [AttributedSample(f"{kind}/{index}", item, {}, torch.ones(1, FRAMES)) for index, item in enumerate(items)]


def features_of(network: torch.nn.Module, items: Tensor, kind: str, f: str, setting: Setting) -> Features:
    steps = list(range(0, 1000, 1000 // setting.timesteps))
    task = DiffusionTask(network, OBJECTIVE, FeatureRecipe(find_measure(f), steps))
    engine = HookEngine(task, dict(network.named_parameters()), make_projection("sketch", setting.dim))
    rows = engine.features(samples_of(items, kind)).numpy()
    about = {"proj_dim": setting.dim, "projection": "sketch", "f": f, "weights": "trained here"}
    return Features(rows, tuple(f"{kind}/{index}" for index in range(len(items))), about, kind)


@torch.no_grad()
def outputs_of(network: torch.nn.Module, items: Tensor) -> np.ndarray:
    """The loss of each item, averaged over 50 timesteps and 2 noise seeds."""
    measure, steps = find_measure("loss"), list(range(0, 1000, 20))
    tasks = [DiffusionTask(network, OBJECTIVE, FeatureRecipe(measure, steps, noise_seed=seed)) for seed in (11, 12)]
    samples = samples_of(items, "query")
    return np.array([np.mean([float(task.values(task.prepare(s)).mean()) for task in tasks]) for s in samples])


def subset_outputs(job: tuple[list[int], Setting]) -> np.ndarray:
    """The outputs of the models of one subset, averaged over training seeds."""
    torch.set_num_threads(1)
    subset, setting = job
    items, queries = make_items(setting.items, 1)[subset], make_items(setting.queries, 2)
    return np.mean([outputs_of(train(items, setting.steps, s), queries) for s in range(setting.seeds)], axis=0)


def planted_duplicates(setting: Setting) -> dict[str, float]:
    """Queries that stand in the training set under another name: how often is that item first?"""
    queries = make_items(setting.queries, 2)
    items = torch.cat([make_items(setting.items, 1), queries])
    network = train(items, setting.steps, 0)
    found = {}
    for name, f in (("TRAK", "loss"), ("D-TRAK", "mean-squared-l2-norm")):
        train_features = features_of(network, items, "train", f, setting)
        member = Member(train_features, features_of(network, queries, "query", f, setting))
        scores = score_member(member, [1e-2])[0]
        wanted = torch.arange(setting.queries) + setting.items
        found[name] = int((scores.argmax(1) == wanted).sum())
    return found


def validity(setting: Setting, workers: int) -> dict[str, LDS]:
    """The linear datamodeling score of every method on the same models."""
    items, queries = make_items(setting.items, 1), make_items(setting.queries, 2)
    plan = make_plan([f"train/{index}" for index in range(setting.items)], setting.subsets, 0.5, seed=3)
    with ProcessPoolExecutor(workers) as pool:
        outputs = np.stack(list(pool.map(subset_outputs, [(list(subset), setting) for subset in plan.subsets])))
    membership, grid = plan.membership(), list(DEFAULT_GRID)
    network = train(items, setting.steps, 0)
    choosing = setting.subsets // 2
    found: dict[str, LDS] = {}

    def judge(name: str, scores: Tensor) -> None:
        """On the models that no regulariser was chosen by."""
        found[name] = linear_datamodeling_score(scores.numpy(), membership[choosing:], outputs[choosing:])

    judge("random", random_scores(setting.queries, setting.items))
    judge("raw similarity", similarity(queries.flatten(1), items.flatten(1)))
    judge("similarity of spectra", similarity(_spectra(queries), _spectra(items)))
    for name, f in (("TRAK", "loss"), ("D-TRAK", "mean-squared-l2-norm")):
        train_features = features_of(network, items, "train", f, setting)
        member = Member(train_features, features_of(network, queries, "query", f, setting))
        scores = score_member(member, grid)
        best, _ = choose_regulariser(scores, grid, membership[:choosing], outputs[:choosing])
        judge(f"{name}, lambda {best:g}", scores[grid.index(best)])
        judge(f"gradient cosine, f {f}", score_by_products([member], cosine=True))
    return found


def _spectra(items: Tensor) -> Tensor:
    return torch.fft.rfft(items).abs().flatten(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subsets", type=int, default=96, help="models; half choose the regulariser, half judge")
    parser.add_argument("--steps", type=int, default=300, help="training steps of each model")
    parser.add_argument("--seeds", type=int, default=1, help="models of each subset that are averaged")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(subsets=arguments.subsets, steps=arguments.steps, seeds=arguments.seeds)
    began = time.perf_counter()
    planted = planted_duplicates(setting)
    for name, count in planted.items():
        print(f"{name}: the planted duplicate is first for {count} of {setting.queries} queries", flush=True)
    found = validity(setting, arguments.workers)
    judged = setting.subsets - setting.subsets // 2
    print(f"LDS over {judged} subsets and {setting.queries} queries, mean [95 % interval]")
    for name, value in found.items():
        print(f"  {name:40} {value}")
    best = next(value for name, value in found.items() if name.startswith("D-TRAK"))
    for name in ("random", "raw similarity"):
        print(f"  {'D-TRAK less ' + name:40} {best.minus(found[name])}")
    print(f"{time.perf_counter() - began:.0f} s")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        told = {name: str(value) for name, value in found.items()}
        arguments.out.write_text(json.dumps({"planted": planted, "lds": told}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
