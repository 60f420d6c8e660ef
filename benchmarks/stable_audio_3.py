"""Time this package against stable-audio-3 on the same small shapes: python benchmarks/stable_audio_3.py CHECKOUT

Both build the same config with the same weights and take turns; the smaller of several times counts. The only condition
is the length, so that no text encoder is needed.
"""

import argparse
import copy
import importlib
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
WIDTH, DEPTH, HEADS = 256, 6, 4
FRAMES = 256


def config() -> dict[str, Any]:
    """A model after the published configs, in small."""
    from support.next_cases import CONDITIONING, diffusion, same_small

    made = diffusion(
        {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "timestep_features_type": None},
        pretransform=same_small(bottleneck={"noise_regularize": False}, channels=128, depths=(6,)),
    )
    seconds = CONDITIONING["configs"][1]
    made["model"]["conditioning"] = {**CONDITIONING, "configs": [seconds]}
    made["model"]["diffusion"].update(cross_attention_cond_ids=["seconds_total"], global_cond_ids=["seconds_total"])
    return made


def least(pair: list[Callable[[], object]], repeats: int) -> list[float]:
    """Return the smallest processor time of each call, in seconds; the calls take turns."""
    times: list[list[float]] = [[] for _ in pair]
    for _ in range(repeats):
        for call, taken in zip(pair, times):
            start = time.process_time()
            call()
            taken.append(time.process_time() - start)
    return [min(taken) for taken in times]


def calls(model: Any, sampling: Any) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    from support.parity_figures import noise, tone

    cond = model.conditioner([{"seconds_total": 0.375}] * 2, "cpu")
    mask = torch.zeros(2, 1, FRAMES)
    cond = {**cond, "inpaint_mask": [mask], "inpaint_masked_input": [torch.zeros(2, 8, FRAMES)]}
    inputs = model.get_conditioning_inputs(cond)
    x, t = noise("x", 2, 8, FRAMES), torch.tensor([0.5, 0.5])
    audio, latents = tone(2, 32 * FRAMES, rate=1600), noise("z", 1, 8, FRAMES)
    return {
        "pass": lambda: model.model(x, t, **inputs),
        "guided pass": lambda: model.model(x, t, cfg_scale=4.0, batch_cfg=True, **inputs),
        "8 steps": lambda: sampling(model.model, x, torch.linspace(1, 0, 9), inputs),
        "encode": lambda: model.pretransform.encode(audio),
        "decode": lambda: model.pretransform.decode(latents),
    }


def euler(net: Any, x: torch.Tensor, times: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """Guided Euler steps, the same for both packages."""
    for t, after in pairwise(times):
        x = x + (after - t) * net(x, t.expand(len(x)), cfg_scale=4.0, batch_cfg=True, **inputs)
    return x


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of stable-audio-3")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.checkout))
    torch.set_num_threads(1)
    from support.next_cases import dressed

    ours = importlib.import_module("stable_audio_tools.stable_audio_3.factory")
    theirs = importlib.import_module("stable_audio_3.factory")
    models = [dressed(f.create_diffusion_cond_from_config(copy.deepcopy(config()))).eval() for f in (ours, theirs)]
    timed = [calls(model, euler) for model in models]
    print(f"{'':12} {'ours':>9} {'theirs':>9} {'ratio':>6}")
    for name in timed[0]:
        pair = [each[name] for each in timed]
        for call in pair:
            call()
        times = least(pair, arguments.repeats)
        print(f"{name:12} {times[0] * 1e3:7.1f}ms {times[1] * 1e3:7.1f}ms {times[1] / times[0]:6.2f}")


if __name__ == "__main__":
    main()
