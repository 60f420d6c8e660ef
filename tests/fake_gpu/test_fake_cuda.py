"""The GPU without a GPU reports what it is there for."""

import pytest
import torch
from support.fake_cuda import FakeCuda
from torch import nn

MIB = 2**20


def test_tensors_have_shapes_types_and_devices() -> None:
    with FakeCuda():
        x = torch.ones(2, 3, device="cuda", dtype=torch.float16)
        assert (x.shape, x.dtype, x.device.type) == ((2, 3), torch.float16, "cuda")
        assert (x @ x.T).device.type == "cuda"


def test_reports_tensors_on_the_wrong_device() -> None:
    with FakeCuda(), pytest.raises(RuntimeError, match="device"):
        nn.Linear(2, 2)(torch.ones(1, 2, device="cuda"))


def test_reports_tensors_of_the_wrong_type() -> None:
    with FakeCuda(), pytest.raises(RuntimeError, match="dtype"):
        nn.Linear(2, 2, device="cuda")(torch.ones(1, 2, device="cuda", dtype=torch.float16))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: float(x[0]),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).all()),
        lambda x: torch.cuda.synchronize(),
    ],
    ids=["number", "list", "copy", "mask", "condition", "synchronize"],
)
def test_counts_where_python_waits(read) -> None:
    with FakeCuda("fake_gpu") as gpu:
        read(torch.ones(4, device="cuda"))
    assert sum(gpu.waits.values()) >= 1
    assert all(place.startswith("test_fake_cuda.py:") for place in gpu.waits)


def test_arithmetic_waits_for_nothing() -> None:
    with FakeCuda() as gpu:
        x = torch.ones(4, device="cuda")
        torch.softmax(x * 2 + 1, 0).clamp(max=0.5)
    assert not gpu.waits and not gpu.host_copies and gpu.calls["aten::mul"] == 1


def test_counts_copies_between_host_and_device() -> None:
    with FakeCuda() as gpu:
        torch.ones(4).to("cuda").to("cuda", torch.float16).cpu()
    assert sum(gpu.host_copies.values()) == 2


def test_counts_conversions_of_weights_and_not_of_activations() -> None:
    with FakeCuda() as gpu:
        layer = nn.Linear(256, 1024, bias=False, device="cuda").requires_grad_(False)
        with torch.autocast("cuda", torch.float16):
            for _ in range(3):
                layer(torch.ones(1, 256, device="cuda"))
    assert gpu.converted_bytes == 3 * 256 * 1024 * 2


def test_peak_memory_is_the_most_that_was_held_at_once() -> None:
    with FakeCuda() as gpu:
        kept = torch.empty(4 * MIB, dtype=torch.uint8, device="cuda")
        torch.empty(2 * MIB, dtype=torch.uint8, device="cuda")
        torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
        view = kept[: 2 * MIB]
        assert gpu.held_bytes == 4 * MIB and gpu.peak_bytes == 7 * MIB
        del kept
        assert gpu.held_bytes == 4 * MIB, "the view holds it"
        del view
        assert gpu.held_bytes == 0
        gpu.restart()
        assert gpu.peak_bytes == 0


def test_a_model_built_without_contents_moves_to_the_device_and_back() -> None:
    with FakeCuda() as gpu:
        with gpu.hollow():
            model = nn.Linear(1024, 1024, bias=False)
        assert gpu.held_bytes == 0
        model.to("cuda")
        assert gpu.held_bytes == 4 * MIB and model.weight.device.type == "cuda"
        model.to("cpu")
        assert gpu.held_bytes == 0 and model.weight.device.type == "cpu"


def test_nothing_is_left_behind() -> None:
    available, generator = torch.cuda.is_available, torch.Generator
    with FakeCuda():
        assert torch.cuda.is_available()
    assert torch.cuda.is_available is available and torch.Generator is generator
    assert type(torch.ones(1)) is torch.Tensor


def test_a_tensor_of_python_numbers_is_copied_to_the_device() -> None:
    with FakeCuda("fake_gpu") as gpu:
        assert torch.tensor([1, 2], device="cuda").device.type == "cuda"
    assert len(gpu.host_copies) == 1 and not gpu.waits


def test_a_copy_that_does_not_block_is_no_wait() -> None:
    with FakeCuda("fake_gpu") as gpu:
        torch.ones(4, device="cuda").to("cpu", non_blocking=True)
    assert len(gpu.host_copies) == 1 and not gpu.waits


def test_small_tensors_of_known_numbers_keep_their_values() -> None:
    with FakeCuda() as gpu:
        ramp = torch.linspace(1, 0, 5, device="cuda") ** 2
        assert ramp.tolist() == [1, 0.5625, 0.25, 0.0625, 0]
        assert float((ramp * 2)[1]) == 1.125 and ramp.double().cpu()[2] == 0.25
        drawn = torch.randn(5, device="cuda") + ramp
        assert float(drawn[0]) == 0.5, "not known"
        ramp += drawn
        assert float(ramp[1]) == 0.5, "not known any more"
    assert gpu.waits
