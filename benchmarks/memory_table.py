"""Peak memory of generation on a GPU, by model, precision and options, as the table of docs/inference.md.

    python benchmarks/memory_table.py [--precisions float16 float32] [--items 1 4]

Needs no GPU: shipped configs run at full size on CUDA tensors without contents (`tests/support/fake_cuda.py`), for one
guided item or more of the model's window. What PyTorch's allocator and CUDA take on top is not counted.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.fake_cuda import FakeCuda
from support.hollow_models import GIB, hollow_model

MODELS = {"Stable Audio Open 1.0": "stable_audio_open_1_0"}
CONDITIONS = {"prompt": "rain", "steps": 1, "seed": 1, "progress": False}
OPTIONS: dict[str, dict[str, object]] = {
    "as it is": {},
    "`decode_frames=256`": {"decode_frames": 256},
    "`offload`": {"offload": True},
    "both": {"offload": True, "decode_frames": 256},
}


def peak(name: str, precision: str, offload: bool = False, **options: object) -> tuple[float, float]:
    """Seconds of the window, and GiB."""
    with FakeCuda() as gpu:
        model = hollow_model(name, gpu, precision, offload=offload)
        model.generate(**CONDITIONS, **options)
        return model.facts.window_seconds, gpu.peak_bytes / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precisions", nargs="+", default=["float32", "float16", "bfloat16"])
    parser.add_argument("--items", nargs="+", type=int, default=[1, 4])
    arguments = parser.parse_args()
    print(f"| model | items | precision | {' | '.join(OPTIONS)} |\n|---|---|---|{'---|' * len(OPTIONS)}")
    for title, name in MODELS.items():
        for items in arguments.items:
            for precision in arguments.precisions:
                asked = {"num_samples": items}
                found = [peak(name, precision, **asked, **options) for options in OPTIONS.values()]
                cells = " | ".join(f"{gib:.1f}" for _, gib in found)
                print(f"| {title}, {found[0][0]:.0f} s | {items} | {precision} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
