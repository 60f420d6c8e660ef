"""All conditioners of a model: stand-ins, wrapped and pre-encoded values, call forms, mistakes."""

import copy
import logging

import pytest
import torch

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models.conditioners import (
    IntConditioner,
    MultiConditioner,
    NumberConditioner,
    create_multi_conditioner_from_conditioning_config,
)

CONFIG = {
    "cond_dim": 8,
    "configs": [
        {"id": "bars", "type": "int", "config": {"max_val": 16}},
        {"id": "seconds", "type": "number", "config": {"max_val": 30, "output_dim": 6}},
    ],
}


def create(**changes):
    return create_multi_conditioner_from_conditioning_config({**CONFIG, **changes})


def test_one_condition_per_conditioner_of_its_width():
    conditions = create()([{"bars": 2, "seconds": 3.5}, {"bars": 4, "seconds": 8}], "cpu")
    assert {key: tuple(value[0].shape) for key, value in conditions.items()} == {
        "bars": (2, 1, 8),
        "seconds": (2, 1, 6),
    }
    assert all(tuple(value[1].shape) == (2, 1) for value in conditions.values())


def test_published_names_of_weights():
    names = {name.rsplit(".", 1)[0] for name in create().state_dict()}
    assert names == {
        "conditioners.bars.int_embedder",
        "conditioners.seconds.embedder.embedding.0",
        "conditioners.seconds.embedder.embedding.1",
    }


def test_values_wrapped_by_collation_are_unwrapped():
    conditioner = create()
    plain = conditioner([{"bars": 2, "seconds": 3.5}], "cpu")
    wrapped = conditioner([{"bars": [2], "seconds": (3.5,)}], "cpu")
    torch.testing.assert_close(wrapped["bars"].tensor, plain["bars"].tensor)


def test_a_stand_in_serves_only_the_items_that_lack_the_key():
    conditioner = MultiConditioner({"a": IntConditioner(4)}, default_keys={"a": "b"})
    tensor = conditioner([{"b": 1}, {"a": 2, "b": 7}, {"b": 3}], "cpu")["a"].tensor
    torch.testing.assert_close(tensor, conditioner.conditioners["a"]([1, 2, 3]).tensor)


def test_stand_ins_have_stand_ins():
    conditioner = MultiConditioner({"a": IntConditioner(4)}, default_keys={"a": "b", "b": "c"})
    torch.testing.assert_close(conditioner([{"c": 5}])["a"].tensor, conditioner([{"a": 5}])["a"].tensor)


def test_stand_ins_in_a_circle_end():
    conditioner = MultiConditioner({"a": IntConditioner(4)}, default_keys={"a": "b", "b": "a"})
    with pytest.raises(ValueError, match=r"has no 'a' or 'b', which conditioner 'a' needs \(its keys: z\)"):
        conditioner([{"z": 5}])


def test_a_missing_key_is_named_with_those_that_were_given():
    with pytest.raises(ValueError, match=r"item 1 has no 'seconds'.*its keys: bars, second\)"):
        create()([{"bars": 1, "seconds": 1}, {"bars": 1, "second": 1}], "cpu")


def test_pre_encoded_conditions_are_stacked_as_they_are():
    conditioner = create(pre_encoded_keys=["bars"])
    given = torch.randn(3, 5)
    tensor, mask = conditioner([{"bars": given, "seconds": 1}, {"bars": [given + 1], "seconds": 2}], "cpu")["bars"]
    torch.testing.assert_close(tensor, torch.stack([given, given + 1]))
    assert mask is None


def test_pre_encoded_conditions_of_different_shapes_are_named():
    conditioner = create(pre_encoded_keys=["bars"])
    items = [{"bars": torch.zeros(3, 5), "seconds": 1}, {"bars": torch.zeros(4, 5), "seconds": 1}]
    with pytest.raises(ValueError, match=r"'bars' is pre-encoded.*one shape in a batch, got \(3, 5\), \(4, 5\)"):
        conditioner(items, "cpu")


def test_the_device_may_be_set_before():
    conditioner = create()
    conditioner.set_device("cpu")
    assert conditioner([{"bars": 2, "seconds": 3.5}])["bars"].tensor.device.type == "cpu"


def test_conditions_go_where_they_are_asked_for():
    conditions = create()([{"bars": 2, "seconds": 3.5}], torch.device("meta"))
    assert {value.tensor.device.type for value in conditions.values()} == {"meta"}


def test_a_conditioner_of_ones_own_needs_only_forward():
    class Own(NumberConditioner):
        def forward(self, values, device=None):
            return [torch.tensor(values)[:, None], None]

    assert MultiConditioner({"x": Own(4)})([{"x": 1.0}], "cpu")["x"][0].shape == (1, 1)


def test_all_mistakes_at_once():
    config = {"cond_dim": 0, "configs": [{"id": "a", "type": "nummber"}, {"type": "int", "config": {"min": 1}}]}
    with pytest.raises(ConfigError) as error:
        create_multi_conditioner_from_conditioning_config(config)
    assert error.value.problems == [
        "conditioning.cond_dim: expected at least 1, got 0",
        "conditioning.configs[0].type: no conditioner named 'nummber'; did you mean 'number'?",
        "conditioning.configs[1].id: missing; it is required (metadata key that this conditioner reads)",
        "conditioning.configs[1].config.min: unknown key; did you mean 'min_val'?",
    ]


@pytest.mark.parametrize(
    ("second", "sentence"),
    [("bars", "'bars' is the id of configs\\[0\\] too"), ("type", "cannot be the name"), ("a.b", "cannot be the name")],
)
def test_ids_that_cannot_be(second, sentence):
    configs = copy.deepcopy(CONFIG["configs"])
    configs[1]["id"] = second
    with pytest.raises(ConfigError, match=rf"conditioning.configs\[1\].id: .*{sentence}"):
        create(configs=configs)


def test_stand_ins_that_nothing_reads_are_ignored_aloud(caplog):
    with caplog.at_level(logging.WARNING):
        create(default_keys={"prompt": "bars", "bars": "bar_count"}, pre_encoded_keys=["latents"])
    assert "default_keys: no conditioner has the id 'prompt'" in caplog.text
    assert "pre_encoded_keys: no conditioner has the id 'latents'" in caplog.text
    assert "'bars'" not in caplog.text


def test_building_on_the_meta_device_costs_nothing():
    with torch.device("meta"):
        conditioner = create()
    assert all(parameter.is_meta for parameter in conditioner.parameters())
