"""Run the scripts of another checkout, unmodified, against this package: python tests/clients/run.py CLIENT PATH

Models are tiny, everything happens in a temporary folder, nothing is fetched. Of packages without such scripts, the
modules are imported. Exit status 1 if a script or an import fails.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

LAUNCH = Path(__file__).resolve().with_name("launch.py")


class Step(NamedTuple):
    """A script of the checkout and its flags; `{...}` are files of the temporary folder."""

    script: str
    flags: str


_UNWRAP = [
    Step("unwrap_model.py", "--model-config {vae} --ckpt-path {vae_ckpt} --name {out}/vae"),
    Step("unwrap_model.py", "--model-config {dit} --ckpt-path {dit_ckpt} --name {out}/dit"),
]
_TRAIN = [
    Step("train.py", f"--model-config {{{key}}} --dataset-config {{data}} --name {key} --batch-size 2 --num-workers 0")
    for key in ("vae", "dit")
]
_PRE_ENCODE = Step(
    "pre_encode.py",
    "--model-config {vae} --ckpt-path {weights} --dataset-config {data} --output-path {out}/latents --sample-size 8192 "
    "--batch-size 1 --num-workers 0",
)

CLIENTS = {
    "upstream": [*_TRAIN, *_UNWRAP, _PRE_ENCODE],
    "friendly": [
        *_TRAIN,
        *_UNWRAP,
        Step(
            "reconstruct_audios.py",
            "--model-config {vae} --ckpt-path {weights} --audio-dir {audio} --output-dir {out}/again "
            "--frame-duration 1.0 --overlap-rate 0.01 --batch-size 50",
        ),
    ],
    "jamendo": [*_TRAIN, *_UNWRAP, _PRE_ENCODE],
    "RC-stable-audio-tools": [*_TRAIN, *_UNWRAP, _PRE_ENCODE],
    "stable-codec": [],
    "stable-audio-controlnet": [],
}
# Modules that need no package beyond those of this project.
MODULES = {
    "stable-codec": ["stable_codec", "stable_codec.model", "stable_codec.fsq", "stable_codec.residual_fsq"],
    "stable-audio-controlnet": [
        "main.controlnet.transformer",
        "main.controlnet.factory",
        "main.controlnet.pretrained",
    ],
}


def prepare(folder: Path) -> dict[str, Path]:
    """Sounds, configs, weights and checkpoints of two tiny models, trained here for a step."""
    from support.docs_commands import of_script
    from support.small_models import small_model
    from support.small_sounds import write_tones

    from stable_audio_tools.core.config import save

    audio = write_tones(folder / "audio", 3, seconds=0.8)
    files = {"audio": audio, "out": folder / "out", "data": folder / "data.json"}
    save({"dataset_type": "audio_dir", "datasets": [{"id": "tones", "path": str(audio)}]}, files["data"])
    names = {"vae": "tiny_autoencoder", "dit": "tiny_diffusion_uncond"}
    for key, name in names.items():
        small = small_model(name, folder)
        files[key] = small.config
        command, words = of_script(
            "train.py",
            f"--model-config {small.config} --dataset-config {files['data']} --name {key} --save-dir {folder}/runs "
            "--batch-size 2 --max-steps 1 --num-workers 0 --logger none --accelerator cpu --precision 32".split(),
        )
        if command(words) != 0:
            raise SystemExit(f"cannot train {name}")
        files[f"{key}_ckpt"] = next((folder / "runs" / key).rglob("*.ckpt"))
        if key == "vae":
            command, words = of_script(
                "unwrap_model.py",
                f"--model-config {small.config} --ckpt-path {files['vae_ckpt']} --name {folder}/weights".split(),
            )
            command(words)
            files["weights"] = folder / "weights.ckpt"
    for name in ("again", "original"):  # one script writes to a second folder without creating it
        (files["out"] / name).mkdir(parents=True)
    return files


def run(step: Step, checkout: Path, files: dict[str, Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one script of the checkout in its own process."""
    words = step.flags.format(**files).split()
    command = [sys.executable, str(LAUNCH), str(checkout / step.script), *words]
    settings = {"PYTHONPATH": str(ROOT), "HOME": str(folder), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    ini = checkout / "defaults.ini"
    if ini.is_file():
        (folder / "defaults.ini").write_text(ini.read_text())
    return subprocess.run(command, cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("client", choices=sorted(CLIENTS))
    parser.add_argument("path", type=Path, help="checkout of the project")
    arguments = parser.parse_args()
    failed = 0
    checkout = arguments.path.resolve()
    for module in MODULES.get(arguments.client, ()):
        places = os.pathsep.join(map(str, (ROOT, checkout)))
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"], env={**os.environ, "PYTHONPATH": places}, cwd=checkout
        )
        print(f"{'ok    ' if done.returncode == 0 else 'FAILED'} import {module}")
        failed += done.returncode != 0
    if not CLIENTS[arguments.client]:
        return int(failed > 0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = prepare(folder)
        for step in CLIENTS[arguments.client]:
            done = run(step, checkout, files, folder)
            print(f"{'ok    ' if done.returncode == 0 else 'FAILED'} {step.script} {step.flags.split(' --')[0]}")
            if done.returncode:
                failed += 1
                print(done.stderr[-2000:])
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
