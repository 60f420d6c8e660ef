"""Run the tests of a checkout of stable-audio-3 against this package: python tests/clients/stable_audio_3_suite.py PATH

The package `stable_audio_3` is `stable_audio_tools.stable_audio_3`; the published names stand for tiny random models
with a tiny text encoder, so nothing is fetched. The tests themselves stay as they are.
"""

import argparse
import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PATCH, _STRIDE = 64, 16  # samples of a patch, patches of a latent


def write_models(folder: Path) -> None:
    """Write the config and weights of a tiny diffusion model (`model`) and of its autoencoder (`same`)."""
    import torch
    from support.next_cases import CONDITIONING, diffusion, dressed, same_small, text_model

    from stable_audio_tools.models.checkpoints import save_weights
    from stable_audio_tools.stable_audio_3.factory import create_diffusion_cond_from_config

    same = same_small(bottleneck={"noise_regularize": False}, patch=_PATCH, strides=(_STRIDE,))
    for side in ("encoder", "decoder"):
        same[side]["config"]["chunk_size"] = 2 * _STRIDE
    config = diffusion(
        {"timestep_features_type": None},
        pretransform=same,
        mask_padding_attention=True,
        use_effective_length_for_schedule=True,
    )
    config["sample_rate"] = 44100
    encoder = text_model("t5gemma", folder)
    text = {"model_path": encoder, "max_length": 6, "padding_mode": "learned"}
    seconds = {"id": "seconds_total", "type": "number", "config": {"min_val": 0, "max_val": 384}}
    conditioners = [{"id": "prompt", "type": "t5gemma", "config": text}, seconds]
    config["model"]["conditioning"] = {**CONDITIONING, "configs": conditioners}
    config["model"]["diffusion"]["cross_attention_cond_ids"] = ["prompt", "seconds_total"]
    torch.manual_seed(0)
    model = dressed(create_diffusion_cond_from_config(config))
    (folder / "model.json").write_text(json.dumps(config))
    save_weights(model, folder / "model.safetensors")


def stand_in(folder: Path) -> None:
    """Let `stable_audio_3` be our package, and every published name the tiny model."""
    import stable_audio_tools.stable_audio_3 as ours

    sys.modules["stable_audio_3"] = ours
    for found in pkgutil.walk_packages(ours.__path__, f"{ours.__name__}."):
        module = importlib.import_module(found.name)
        sys.modules[found.name.replace(ours.__name__, "stable_audio_3", 1)] = module
    names = importlib.import_module(f"{ours.__name__}.model_configs")
    paths = str(folder / "model.json"), str(folder / "model.safetensors")
    names.ModelConfig.resolve = lambda self: paths


def main(argv: list[str] | None = None) -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("path", type=Path, help="a checkout of stable-audio-3")
    checkout = arguments.parse_args(argv).path.resolve()
    if not (checkout / "tests" / "conftest.py").is_file():
        print(f"{checkout}: holds no tests of stable-audio-3", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        write_models(folder)
        shutil.copytree(checkout / "tests", folder / "suite" / "tests")
        (folder / "suite" / "tests" / "__init__.py").touch()
        plugin = (
            f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
            f"from pathlib import Path\nfrom stable_audio_3_suite import stand_in\nstand_in(Path({name!r}))\n"
        )
        (folder / "suite" / "stand_in_plugin.py").write_text(plugin)
        environment = {**os.environ, "PYTHONPATH": str(folder / "suite"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "stand_in_plugin", "-p", "no:cacheprovider", "tests"]
        return subprocess.run(command, cwd=folder / "suite", env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
