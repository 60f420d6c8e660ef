"""Runs of two processes, started as users start them: by torchrun, by --devices, by srun's variables."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.launching import LIGHTNING, TORCHRUN, finish, free_port, run, start, words

from stable_audio_tools.training.run_folder import checkpoint_mark

RECORD = """
import os, sys
import torch
from stable_audio_tools.cli import train
from stable_audio_tools.core.ranks import rank
from stable_audio_tools.training.diffusion import DiffusionCondTrainingWrapper

original = DiffusionCondTrainingWrapper.training_step

def step(self, batch, batch_idx):
    with open(f"{os.environ['RECORDS']}/{rank()}", "a") as file:
        files = " ".join(sorted(os.path.basename(entry["path"]) for entry in batch[1]))
        print(torch.rand(1).item(), self.timesteps.draw(1).item(), files, file=file)
    return original(self, batch, batch_idx)

DiffusionCondTrainingWrapper.training_step = step
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    script = tmp_path / "record.py"
    script.write_text(RECORD)
    return script


def records(folder: Path) -> dict[str, list[str]]:
    return {path.name: path.read_text().splitlines() for path in sorted(folder.iterdir())}


def without_demos(config: dict[str, Any]) -> None:
    del config["training"]["demo"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "lightning", "slurm"])
def test_ranks_draw_different_noise_and_share_the_data(
    launcher: str, write_config: Any, dataset: Path, recording: Path, tmp_path: Path
) -> None:
    records_folder = tmp_path / "records"
    records_folder.mkdir()
    config = write_config("tiny_diffusion_cond", without_demos)
    # Eight of the ten items, which are two steps of two processes.
    flags = words(config, dataset, tmp_path / "runs", "--max-epochs", 1, "--num-train-samples", 8)
    if launcher == "torchrun":
        run((TORCHRUN, *flags), recording, RECORDS=records_folder)
    elif launcher == "lightning":
        run((LIGHTNING, *flags, "--devices", 2), recording, RECORDS=records_folder)
    else:
        common = {"SLURM_NTASKS": 2, "SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": 2, "SLURM_NNODES": 1}
        common |= {"SLURM_JOB_ID": 7, "MASTER_PORT": free_port(), "RECORDS": records_folder}
        both = [
            start((LIGHTNING, *flags), recording, SLURM_PROCID=index, SLURM_LOCALID=index, **common)
            for index in range(2)
        ]
        for process in both:
            finish(process)
    lines = records(records_folder)
    assert [len(lines[rank]) for rank in "01"] == [2, 2]
    draws = [line.split()[:2] for rank in "01" for line in lines[rank]]
    assert len({noise for noise, _ in draws}) == 4 and len({level for _, level in draws}) == 4
    files = [name for rank in "01" for line in lines[rank] for name in line.split()[2:]]
    assert len(set(files)) == 8
    (folder,) = (tmp_path / "runs" / "run").iterdir()
    assert len(list(folder.glob("checkpoints/*.ckpt"))) == 1


def test_one_process_in_an_allocation_of_several_trains_on_all_data(
    write_config: Any, dataset: Path, recording: Path, tmp_path: Path
) -> None:
    records_folder = tmp_path / "records"
    records_folder.mkdir()
    config = write_config("tiny_diffusion_cond", without_demos)
    flags = words(config, dataset, tmp_path / "runs", "--max-epochs", 1)
    report = run((LIGHTNING, *flags), recording, RECORDS=records_folder, SLURM_NTASKS=4, SLURM_PROCID=0, SLURM_JOB_ID=7)
    assert "SLURM allocated 4 tasks" in report and "it trains alone, on all the data" in report
    files = [name for line in records(records_folder)["0"] for name in line.split()[2:]]
    assert len(set(files)) == 10


@pytest.mark.slow
def test_each_launch_has_a_folder_of_its_own(write_config: Any, dataset: Path, tmp_path: Path) -> None:
    """A rendezvous by a fixed address has the same id and port in every launch."""
    config = write_config("tiny_diffusion_uncond", without_demos)
    static = (*TORCHRUN[:3], "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--rdzv_id", "same")
    for seed in (1, 2):
        flags = words(config, dataset, tmp_path / "runs", "--max-steps", 1, "--seed", seed)
        run(((*static, "--master_port", str(free_port())), *flags))
    folders = sorted((tmp_path / "runs" / "run").iterdir())
    assert len(folders) == 2
    assert [json.loads((folder / "settings.json").read_text())["seed"] for folder in folders] == [1, 2]


@pytest.mark.slow
def test_ranks_that_see_different_data_stop_together(write_config: Any, dataset: Path, tmp_path: Path) -> None:
    """As on two machines, each with a copy of its own."""
    clips, script = tmp_path / "clips", tmp_path / "elsewhere.py"
    for rank in range(2):
        shutil.copytree(dataset.parent, clips / str(rank))
    missing = sorted((clips / "1").rglob("*.flac"))[3]
    missing.unlink()
    config_file = tmp_path / "data.json"
    script.write_text(
        "import os, sys\n"
        f"os.chdir({str(clips)!r} + '/' + os.environ['RANK'])\n"
        "from stable_audio_tools.cli import train\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    config_file.write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [{"id": "clips", "path": "."}]}))
    flags = words(write_config("tiny_diffusion_uncond"), config_file, tmp_path / "runs", "--max-steps", 1)
    report = run((TORCHRUN, *flags), script, status=1)  # torchrun's own status
    errors = [line for line in report.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and missing.name in errors[0]
    assert "rank 0 sees 10 items, rank 1 sees 9" in errors[0] and "rank 1 lacks" in errors[0]


@pytest.mark.slow
def test_a_mistake_of_one_rank_stops_all(write_config: Any, dataset: Path, tmp_path: Path) -> None:
    script = tmp_path / "one.py"
    script.write_text(
        "import os, sys\n"
        "from stable_audio_tools.cli import train\n"
        "words = sys.argv[1:]\n"
        "if os.environ.get('RANK') == '1':\n"
        "    words += ['--dataset-config', 'nowhere.json']\n"
        "sys.exit(train.main(words))\n"
    )
    flags = words(write_config("tiny_diffusion_uncond"), dataset, tmp_path / "runs", "--max-steps", 1, "--devices", 2)
    report = run((LIGHTNING, *flags), script, status=2)
    assert [line for line in report.splitlines() if line.startswith("error: ")] == [
        "error: rank 1: nowhere.json: no such file"
    ]


@pytest.mark.slow
def test_recover_agrees_on_one_checkpoint(write_config: Any, dataset: Path, tmp_path: Path) -> None:
    """Two machines that do not share the folder: the second has nothing, or another checkpoint of the same name."""
    config = write_config("tiny_diffusion_uncond", without_demos)
    script = tmp_path / "elsewhere.py"
    script.write_text(
        "import os, sys\n"
        f"os.chdir({str(tmp_path)!r} + '/machine' + os.environ['RANK'])\n"
        "from stable_audio_tools.cli import train\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    machines = [tmp_path / "machine0", tmp_path / "machine1"]
    for machine in machines:
        machine.mkdir()
    run((LIGHTNING, *words(config, dataset, machines[0] / "runs", "--max-steps", 2)))
    (first,) = machines[0].glob("runs/run/*/checkpoints/*.ckpt")
    resume = words(config, dataset, Path("runs"), "--max-steps", 4, "--recover")
    report = run((TORCHRUN, *resume), script, status=1)
    assert f"error: rank 1: {first.relative_to(machines[0])}: not found here, but rank 0 resumes from it" in report

    copy = machines[1] / first.relative_to(machines[0])
    copy.parent.mkdir(parents=True, exist_ok=True)
    changed = torch.load(first, weights_only=True)
    changed["global_step"] = 1
    torch.save(changed, copy)
    assert checkpoint_mark(copy) != checkpoint_mark(first)
    report = run((TORCHRUN, *resume), script, status=1)
    assert "rank 0 has" in report and "all machines need the same checkpoint" in report
    shutil.copy(first, copy)
    assert checkpoint_mark(copy) == checkpoint_mark(first)


@pytest.mark.slow
def test_demos_from_shards_hold_nobody_up(write_config: Any, dataset: Path, tmp_path: Path) -> None:
    """Rank zero alone reads the batch of a demo, whose loader would ask the others about the end of their shards."""
    import tarfile

    shards = tmp_path / "shards"
    shards.mkdir()
    clips = sorted(dataset.parent.rglob("*.flac"))
    for number in range(2):
        with tarfile.open(shards / f"{number}.tar", "w") as tar:
            for clip in clips[number::2]:
                tar.add(clip, clip.name)
    held_out = tmp_path / "held_out.json"
    held_out.write_text(json.dumps({"dataset_type": "wds", "datasets": [{"id": "clips", "path": str(shards)}]}))
    config = write_config("tiny_diffusion_uncond")
    flags = words(config, dataset, tmp_path / "runs", "--max-steps", 2, "--val-dataset-config", held_out)
    run((TORCHRUN, *flags))
    assert list((tmp_path / "runs").rglob("step_00000001/*.wav"))
