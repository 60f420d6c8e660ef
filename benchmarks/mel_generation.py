"""Generation by this toolkit and by diffusers' audio diffusion pipeline, with the same weights, decoding included.

python benchmarks/mel_generation.py [--repeats 3] [--items 4] [--steps 10] [--iterations 32] [--channels 32 32 64 ...]

The pipeline decodes with librosa: non-negative least squares, then Griffin-Lim, image after image. Both sides make
images of 256 bands and 256 frames in one process, after a warm-up; CPU time is reported, so a busy machine does not
disturb it. The share of the U-Net is the same on both sides: the larger it is, the less the decoding counts.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch

from stable_audio_tools.inference.generation import generate_diffusion_uncond
from stable_audio_tools.mel.pipeline_folders import PIPELINES

SIZE = 256


def pipeline_of(channels: list[int], iterations: int) -> Any:
    """With random weights; the time does not depend on them."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=(SIZE, SIZE),
        in_channels=1,
        out_channels=1,
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        norm_num_groups=8,
    )
    mel = diffusers.Mel(x_res=SIZE, y_res=SIZE, sample_rate=22050, n_fft=2048, hop_length=512, n_iter=iterations)
    made = diffusers.AudioDiffusionPipeline(vqvae=None, unet=unet, mel=mel, scheduler=diffusers.DDIMScheduler())
    made.set_progress_bar_config(disable=True)
    return made


def cpu_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median, after one run that counts for nothing."""
    run()
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        spent.append(time.process_time() - start)
    return statistics.median(spent)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--items", type=int, default=4)
    made.add_argument("--steps", type=int, default=10)
    made.add_argument("--iterations", type=int, default=32, help="of Griffin-Lim")
    made.add_argument("--channels", type=int, nargs="+", default=[32, 32, 64, 64, 64, 64], help="of the U-Net's levels")
    return made


def main() -> int:
    arguments = parser().parse_args()
    theirs = pipeline_of(arguments.channels, arguments.iterations)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model, config = PIPELINES.load(folder)

    def ours() -> Any:
        return generate_diffusion_uncond(
            model,
            arguments.steps,
            arguments.items,
            config["sample_size"],
            0,
            "cpu",
            sampler_type="ddim",
            progress=False,
        )

    before = cpu_seconds(lambda: theirs(batch_size=arguments.items, steps=arguments.steps), arguments.repeats)
    here = cpu_seconds(ours, arguments.repeats)
    print(f"pipeline {before:.2f} s, here {here:.2f} s of CPU for {arguments.items} items: {before / here:.2f} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())
