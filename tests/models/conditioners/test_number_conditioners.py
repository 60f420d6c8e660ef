"""Numbers and choices: clamping, scaling, unknown names, published names and shapes of weights."""

import math

import pytest
import torch

from stable_audio_tools.core.config import build
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.conditioners import IntConditioner, ListConditioner, NumberConditioner


def test_int_looks_up_the_number_counted_from_the_smallest():
    conditioner = IntConditioner(4, min_val=3, max_val=6)
    tensor, mask = conditioner([3, 6, 4])
    table = conditioner.int_embedder.weight
    assert conditioner.state_dict().keys() == {"int_embedder.weight"} and table.shape == (4, 4)
    torch.testing.assert_close(tensor[:, 0], table[[0, 3, 1]])
    assert mask.shape == (3, 1) and mask.dtype == torch.bool and mask.all()


def test_int_from_zero_is_the_row_itself():
    """Published models start at 0, where no offset can be seen."""
    conditioner = IntConditioner(4, max_val=8)
    torch.testing.assert_close(conditioner([5]).tensor[0, 0], conditioner.int_embedder.weight[5])


def test_ints_outside_the_range_count_as_its_ends():
    conditioner = IntConditioner(4, min_val=-2, max_val=2)
    torch.testing.assert_close(conditioner([-9, 9]).tensor, conditioner([-2, 2]).tensor)


def test_number_by_its_formula():
    conditioner = NumberConditioner(4, min_val=10, max_val=20)
    frequencies = conditioner.embedder.embedding[0].weights
    linear = conditioner.embedder.embedding[1]
    x = torch.tensor([0.25])
    phases = 2 * math.pi * x * frequencies
    wanted = linear(torch.cat([x, phases.sin(), phases.cos()]))
    torch.testing.assert_close(conditioner([12.5]).tensor[0, 0], wanted)
    assert {name: tuple(tensor.shape) for name, tensor in conditioner.state_dict().items()} == {
        "embedder.embedding.0.weights": (128,),
        "embedder.embedding.1.weight": (4, 257),
        "embedder.embedding.1.bias": (4,),
    }


def test_numbers_outside_the_range_count_as_its_ends():
    conditioner = NumberConditioner(4, min_val=0, max_val=512)
    torch.testing.assert_close(conditioner([-1, 9999]).tensor, conditioner([0, 512]).tensor)


def test_numbers_come_as_data_loaders_give_them():
    conditioner = NumberConditioner(4, max_val=8)
    torch.testing.assert_close(conditioner([torch.tensor([3.0])]).tensor, conditioner([3]).tensor)


def test_half_precision_weights_keep_the_number_exact():
    """At 4095 of 4096, float16 would round the scaled number up to 1."""
    conditioner = NumberConditioner(4, max_val=4096).half()
    tensor = conditioner([4095, 4096]).tensor
    assert tensor.dtype == torch.float16
    assert not torch.equal(tensor[0], tensor[1])


def test_list_knows_its_options_and_one_row_for_all_others():
    conditioner = ListConditioner(4, ["calm", "bright"])
    table = conditioner.embedder.weight
    assert table.shape == (3, 4)
    torch.testing.assert_close(conditioner(["bright", "calm", "loud", "odd"]).tensor[:, 0], table[[2, 1, 0, 0]])


@pytest.mark.parametrize("tag", ["int", "number"])
def test_an_empty_range_is_named(tag):
    node = {"id": "a", "type": tag, "config": {"min_val": 4, "max_val": 4}}
    with pytest.raises(ConfigError, match=r"max_val: is 4.*not above min_val"):
        build("conditioner", node, cond_dim=4)


def test_a_list_without_options_is_named():
    with pytest.raises(ConfigError, match="options: missing"):
        build("conditioner", {"id": "a", "type": "list", "config": {}}, cond_dim=4)


def test_a_width_is_needed():
    with pytest.raises(ConfigError, match="IntConditioner needs its output_dim"):
        IntConditioner()


def test_gradients_reach_the_tables():
    conditioner = NumberConditioner(4)
    conditioner([0.3]).tensor.sum().backward()
    assert all(parameter.grad is not None for parameter in conditioner.parameters())
