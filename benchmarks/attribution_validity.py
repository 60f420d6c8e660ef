"""Do attribution scores predict what training does? Planted duplicates, and the linear datamodeling score.

python benchmarks/attribution_validity.py --workers 2 [--task signals] [--subsets 96] [--out outputs/validity.json]

Items are short "latents": a few sinusoids of one of several classes, with random amplitudes and phases, and noise. Task
`signals` trains whole networks, `short` does so on other, fewer and longer items, `adapters` trains low-rank adapters
of a network that was trained on other items.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.attribution.engines import HookEngine
from stable_audio_tools.attribution.features import Features
from stable_audio_tools.attribution.lds import LDS, choose_regulariser, linear_datamodeling_score
from stable_audio_tools.attribution.projection import make_projection
from stable_audio_tools.attribution.scoring import (
    DEFAULT_GRID,
    Member,
    default_regulariser,
    score_by_products,
    score_member,
)
from stable_audio_tools.attribution.scoring_run import random_scores, similarity
from stable_audio_tools.attribution.task import AttributedSample, DiffusionTask, FeatureRecipe, find_measure
from stable_audio_tools.attribution.validation import make_plan
from stable_audio_tools.models.diffusion.objectives import RECTIFIED_FLOW
from stable_audio_tools.models.dit import DiffusionTransformer
from stable_audio_tools.models.lora import LoraConfig, attach_lora

BATCH, RANK = 16, 8
OBJECTIVE = RECTIFIED_FLOW


@dataclass(frozen=True)
class Setting:
    """Size of the data, of the training and of the features."""

    items: int = 96
    queries: int = 20
    subsets: int = 96
    steps: int = 300
    seeds: int = 1
    dim: int = 1024
    timesteps: int = 50
    channels: int = 4
    frames: int = 16
    classes: int = 6
    adapters: bool = False


TASKS = {
    "signals": Setting(),
    "short": Setting(items=64, queries=16, channels=2, frames=24, classes=12),
    "adapters": Setting(adapters=True, steps=200),
}


def make_items(setting: Setting, count: int, seed: int) -> Tensor:
    """Draw items (count, channels, frames)."""
    rng = torch.Generator().manual_seed(seed)
    classes = torch.Generator().manual_seed(0)
    frequencies = 1 + 4 * torch.rand(setting.classes, setting.channels, 2, generator=classes)
    time_axis = torch.linspace(0, 1, setting.frames)
    items = []
    for index in range(count):
        phases = 2 * torch.pi * torch.rand(setting.channels, 2, 1, generator=rng)
        loudness = 0.3 + torch.rand(setting.channels, 2, 1, generator=rng)
        waves = loudness * torch.sin(
            2 * torch.pi * frequencies[index % setting.classes][..., None] * time_axis + phases
        )
        items.append(waves.sum(1) + 0.1 * torch.randn(setting.channels, setting.frames, generator=rng))
    return torch.stack(items)


def make_network(setting: Setting, seed: int) -> torch.nn.Module:
    """Build a diffusion transformer of 0.04 million parameters; for adapters, one trained on other items."""
    torch.manual_seed(seed)
    network = DiffusionTransformer(io_channels=setting.channels, embed_dim=32, depth=2, num_heads=2)
    if setting.adapters:
        network.load_state_dict(_base_weights(setting))
        attach_lora(network, LoraConfig(rank=RANK), seed=seed)
    return network


@cache
def _base_weights(setting: Setting) -> dict[str, Tensor]:
    """Train the network that adapters start from, once per process and before others are forked."""
    whole = replace(setting, adapters=False, steps=300)
    return train(whole, make_items(whole, whole.items, 7), 0).state_dict()


def train(setting: Setting, items: Tensor, seed: int) -> torch.nn.Module:
    """Train on items; the same seed gives the same start, order and noise for any items."""
    network = make_network(setting, seed)
    return _fit(network, items, setting.steps, 1e-2 if setting.adapters else 2e-3, seed).eval()


def _fit(network: torch.nn.Module, items: Tensor, steps: int, rate: float, seed: int) -> torch.nn.Module:
    """Denoise at uniform noise levels."""
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=rate)
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
    return network


def samples_of(items: Tensor, kind: str) -> list[AttributedSample]:
    return [
        AttributedSample(f"{kind}/{index}", item, {}, torch.ones(1, item.shape[1])) for index, item in enumerate(items)
    ]


def features_of(network: torch.nn.Module, items: Tensor, kind: str, f: str, setting: Setting) -> Features:
    steps = list(range(0, 1000, 1000 // setting.timesteps))
    task = DiffusionTask(network, OBJECTIVE, FeatureRecipe(find_measure(f), steps))
    named = dict(network.named_parameters())
    parameters = {name: p for name, p in named.items() if not setting.adapters or ".lora_factors." in name}
    engine = HookEngine(task, parameters, make_projection("sketch", setting.dim))
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


def subset_outputs(job: tuple[list[int], int, Setting]) -> np.ndarray:
    """Measure the model of a subset and a training seed."""
    torch.set_num_threads(1)
    subset, seed, setting = job
    items, queries = make_items(setting, setting.items, 1)[subset], make_items(setting, setting.queries, 2)
    return outputs_of(train(setting, items, seed), queries)


def planted_duplicates(setting: Setting) -> dict[str, float]:
    """Count how often a copy of the query in the training set, under another name, is ranked first."""
    queries = make_items(setting, setting.queries, 2)
    items = torch.cat([make_items(setting, setting.items, 1), queries])
    network = train(setting, items, 0)
    found = {}
    for name, f in (("TRAK", "loss"), ("D-TRAK", "mean-squared-l2-norm")):
        train_features = features_of(network, items, "train", f, setting)
        member = Member(train_features, features_of(network, queries, "query", f, setting))
        scores = score_member(member, [default_regulariser(member)])[0]
        wanted = torch.arange(setting.queries) + setting.items
        found[name] = int((scores.argmax(1) == wanted).sum())
    return found


class Verdicts(NamedTuple):
    """LDS by method, and for each ridge method its default and its best regulariser."""

    lds: dict[str, LDS]
    ridge: dict[str, tuple[float, LDS, float, LDS]]


def validity(setting: Setting, workers: int) -> Verdicts:
    """Compute the linear datamodeling score of every method on the same models."""
    items, queries = make_items(setting, setting.items, 1), make_items(setting, setting.queries, 2)
    plan = make_plan([f"train/{index}" for index in range(setting.items)], setting.subsets, 0.5, seed=3)
    jobs = [(list(subset), seed, setting) for subset in plan.subsets for seed in range(setting.seeds)]
    with ProcessPoolExecutor(workers) as pool:
        outputs = np.stack(list(pool.map(subset_outputs, jobs)))
    outputs = outputs.reshape(setting.subsets, setting.seeds, setting.queries)
    membership, network = plan.membership(), train(setting, items, 0)
    found: dict[str, LDS] = {}
    ridge = {}

    def judge(scores: Tensor) -> LDS:
        return linear_datamodeling_score(scores.numpy(), membership, outputs)

    found["random"] = judge(random_scores(setting.queries, setting.items))
    found["raw similarity"] = judge(similarity(queries.flatten(1), items.flatten(1)))
    found["similarity of spectra"] = judge(similarity(_spectra(queries), _spectra(items)))
    for name, f in (("TRAK", "loss"), ("D-TRAK", "mean-squared-l2-norm")):
        train_features = features_of(network, items, "train", f, setting)
        member = Member(train_features, features_of(network, queries, "query", f, setting))
        found[f"gradient cosine, f {f}"] = judge(score_by_products([member], cosine=True))
        default, grid = default_regulariser(member), list(DEFAULT_GRID)
        of_default, *scores = score_member(member, [default, *grid])
        found[name] = judge(of_default)
        best, _ = choose_regulariser([one.numpy() for one in scores], grid, membership, outputs)
        ridge[name] = (default, found[name], best, judge(scores[grid.index(best)]))
    return Verdicts(found, ridge)


def _spectra(items: Tensor) -> Tensor:
    return torch.fft.rfft(items).abs().flatten(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="signals", help="data and training (default: signals)")
    parser.add_argument("--subsets", type=int, default=64, help="subsets of the training items (default: 64)")
    parser.add_argument("--seeds", type=int, default=2, help="training seeds of each subset (default: 2)")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = replace(TASKS[arguments.task], subsets=arguments.subsets, seeds=arguments.seeds)
    began = time.perf_counter()
    planted = planted_duplicates(setting)
    for name, count in planted.items():
        print(f"{name}: the planted duplicate is first for {count} of {setting.queries} queries", flush=True)
    verdicts = validity(setting, arguments.workers)
    print(
        f"LDS of {setting.subsets} subsets, {setting.seeds} seeds and {setting.queries} queries, mean [95 % interval]"
    )
    lines = {name: str(value) for name, value in verdicts.lds.items()}
    for name, (default, value, best, of_best) in verdicts.ridge.items():
        lines[f"{name}, default lambda {default:.2g}"] = lines.pop(name)
        lines[f"{name}, best lambda {best:g} of a grid"] = str(of_best)
        lines[f"{name}, best less default"] = str(of_best.minus(value))
        for other in ("random", "raw similarity", *(key for key in verdicts.lds if key.startswith("gradient cosine"))):
            lines[f"{name} less {other}"] = str(value.minus(verdicts.lds[other]))
    for name, text in lines.items():
        print(f"  {name:58} {text}")
    print(f"{time.perf_counter() - began:.0f} s")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"task": arguments.task, "planted": planted, "lds": lines}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
