"""Damaged files of prompts: each is planned, or refused with a ConfigError that names the file."""

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.damage import damaged_text

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.inference.batch.plan import plan_batch
from stable_audio_tools.inference.generation.facts import Input, ModelFacts
from stable_audio_tools.models.diffusion.objectives import V

FACTS = ModelFacts(
    "diffusion_cond",
    44100,
    window=2097152,
    objective=V,
    inputs={"prompt": Input("text"), "seconds_start": Input("number"), "seconds_total": Input("number")},
)
LEAF = {"prompt": "a drum loop", "seconds_start": 0, "seconds_total": 3, "steps": 5, "cfg_scale": 2.5}
FILES = {
    ".yaml": "music:\n  drums: &base\n    prompt: a drum loop\n    seconds_start: 0\n    seconds_total: 3\n"
    "  more:\n    <<: *base\n    steps: 5\n    seed: 7\n",
    ".json": json.dumps({"music": {"drums": LEAF, "more": LEAF}}),
    ".jsonl": "".join(json.dumps({"name": name, **LEAF}) + "\n" for name in ("a", "b/c")),
    ".csv": "name,prompt,seconds_start,seconds_total,steps\na,a drum loop,0,3,5\nb/c,rain,0,2.5,9\n",
}


@pytest.mark.parametrize("suffix", FILES)
@settings(
    max_examples=125,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_is_planned_or_refused(suffix: str, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged_prompts{suffix}"
    path.write_bytes(damaged_text(FILES[suffix], random.Random(seed)))
    try:
        assert plan_batch(path, FACTS)
    except ConfigError as error:
        assert all(problem.startswith(str(path)) for problem in error.problems)
