"""The place of a process, by the variables that each launcher sets."""

import pytest

from stable_audio_tools.core.ranks import Launch, idle_slurm_tasks, is_rank_zero, launch, rank, world_size

VARIABLES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "SLURM_PROCID", "SLURM_LOCALID"),
    *("SLURM_NTASKS", "SLURM_NNODES", "SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_NAME"),
    *("SLURM_STEP_NUM_NODES", "SLURM_STEP_TASKS_PER_NODE"),
)
SRUN = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Launch("none")),
        (
            {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2"},
            Launch("torchrun", 3, 1, 8, 2),
        ),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Launch("torchrun", 3, 0, 8, 1)),  # one process a machine, Kubernetes
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, Launch("lightning", 1, 1, 2, 2)),
        (
            {"LOCAL_RANK": "1", "NODE_RANK": "2", "WORLD_SIZE": "12", "LOCAL_WORLD_SIZE": "4"},
            Launch("lightning", 9, 1, 12, 4),
        ),
        ({**SRUN, "SLURM_NNODES": "2"}, Launch("slurm", 5, 1, 8, 4)),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, Launch("slurm", 5, 1, 8, 4)),
        ({"SLURM_NTASKS": "4"}, Launch("none")),  # the shell of salloc
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, Launch("none")),  # a batch script without srun
        ({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Launch("none")),  # the interactive step of salloc
        ({**SRUN, "SLURM_JOB_NAME": "interactive"}, Launch("none")),
    ],
)
def test_place_comes_from_the_launcher(
    variables: dict[str, str], expected: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch() == expected
    assert (rank(), world_size(), is_rank_zero()) == (expected.rank, expected.world_size, expected.rank == 0)
    alone = "SLURM_NTASKS" in variables and expected.by == "none"
    assert idle_slurm_tasks() == (int(variables["SLURM_NTASKS"]) if alone else 0)
