"""Frozen encoders: loaded once, moved with their conditioner, asked once for a prompt."""

import copy
import pickle

import pytest
import torch
from support.fake_cuda import FakeCuda
from support.small_t5 import write_t5
from torch import nn

from stable_audio_tools.models.conditioners import MultiConditioner, T5Conditioner
from stable_audio_tools.models.conditioners.frozen import FrozenEncoder, RecentResults

PROMPTS = [{"prompt": "slow piano"}, {"prompt": "fast drum"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("t5"))


def multi(folder):
    return MultiConditioner({"prompt": T5Conditioner(16, folder, max_length=9)})


def passes_of(conditioner):
    """The sizes of the batches that the encoder reads, while it reads them."""
    sizes = []
    conditioner.encoder().register_forward_hook(
        lambda module, args, kwargs, output: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return sizes


def test_a_prompt_is_encoded_once_for_many_calls(folder):
    conditioner = multi(folder)
    sizes = passes_of(conditioner.conditioners["prompt"])
    with torch.no_grad():
        first = conditioner(PROMPTS, "cpu")["prompt"].tensor
        again = conditioner([*PROMPTS, PROMPTS[0]], "cpu")["prompt"].tensor
        other = conditioner(PROMPTS[:1], "cpu")["prompt"].tensor
    assert sizes == [2, 1], "the same texts are read once; a text alone is another batch, and rounds otherwise"
    assert torch.equal(first, again[:2]) and torch.equal(again[2], again[0])
    torch.testing.assert_close(other[0], first[0])


def test_nothing_is_kept_while_gradients_are_recorded(folder):
    conditioner = MultiConditioner({"prompt": T5Conditioner(4, folder)})
    sizes = passes_of(conditioner.conditioners["prompt"])
    for _ in range(2):
        conditioner(PROMPTS, "cpu")["prompt"].tensor.sum().backward()
    assert sizes == [2, 2]


def test_the_oldest_result_is_dropped():
    recent = RecentResults(size=2)
    computed = []
    with torch.no_grad():
        for key in ("a", "b", "a", "c", "a", "b"):
            assert recent.get(key, lambda key=key: computed.append(key) or key) == key
    assert computed == ["a", "b", "c", "b"]
    for copied in (copy.deepcopy(recent), pickle.loads(pickle.dumps(recent))):
        with torch.no_grad():
            assert copied.get("b", lambda: "fresh") == "fresh"


def test_the_current_gpu_and_its_number_are_one_device():
    """A reload of T5 for every call otherwise."""
    loads = []

    def load():
        loads.append(1)
        return nn.Linear(2, 2)

    with FakeCuda():
        frozen = FrozenEncoder()
        for device in ("cuda", "cuda:0", "cuda"):
            module = frozen.on("encoder", torch.device(device), torch.float32, load)
            assert module.weight.device == torch.device("cuda:0")
        del module
        frozen.module = None
    assert len(loads) == 1


def test_a_moved_conditioner_takes_its_encoder_along(folder):
    with FakeCuda() as gpu, torch.no_grad():
        conditioner = multi(folder)
        conditioner(PROMPTS, "cuda")
        encoder = conditioner.conditioners["prompt"].encoder()
        assert encoder.dtype == torch.float16 and gpu.held_bytes > 1000
        conditioner.to("cpu")
        kept = gpu.held_bytes
        assert encoder.device.type == "cpu" and kept < 10_000, "the recent results stay"
        conditioner([{"prompt": "rain"}], "cuda")
        assert encoder.device.type == "cuda", "it is the same encoder, moved back"
        conditioner.to("cpu")
