"""Runs real code on CUDA tensors without contents, and records what the code would do to a GPU.

Tensors on "cuda" have shapes, types and devices but no values (PyTorch's `FakeTensorMode`), so a model of a billion
parameters is built, run and trained in seconds on a laptop:

    with FakeCuda() as gpu:
        with torch.device("cuda"):
            model = create_model_from_config(config)
        generate_diffusion_cond(model, device="cuda", ...)
    assert not gpu.waits

Tensors on the wrong device or of the wrong type raise, as on a GPU. `FakeCuda` also records

- `waits`: places where Python waits for the device to tell a value,
- `host_copies`: places that copy between host and device,
- `conversions`: places that convert weights to another type, and how many bytes that writes,
- `held_bytes` and `peak_bytes`: memory of the device that is in use, and the most that was,
- `calls`: operators by name, a measure of the cost of launching kernels.

It finds no wrong numbers and no errors of kernels, and measures no speed. Small tensors that are computed from known
numbers alone, such as schedules, keep their values; other values that Python reads from the device are 0.5 and 1.
Random generators of the device are those of the CPU. A model too large for the memory of the host is built on it
without contents under `FakeCuda.hollow()`.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.weak import WeakIdKeyDictionary

_WAITING = frozenset(
    f"aten::{name}"
    for name in (
        "_local_scalar_dense",
        "_unique2",
        "equal",
        "is_nonzero",
        "masked_select",
        "nonzero",
        "unique_consecutive",
        "unique_dim",
    )
)
_COPYING = ("aten::_to_copy", "aten::copy_")
_UNKNOWN = ("bernoulli", "empty", "exponential", "multinomial", "normal", "rand", "uniform")
_MOST_KNOWN = 4096  # values of a tensor that are kept
_PINNING = ("aten::_pin_memory", "aten::pin_memory")
_OF_ONE_TYPE = frozenset(  # kernels that take floating-point inputs of one type only, which meta kernels do not check
    f"aten::{name}"
    for name in (
        "_scaled_dot_product_attention_math",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention",
        "addmm",
        "addmv",
        "baddbmm",
        "bmm",
        "convolution",
        "mm",
        "mv",
        "native_group_norm",
    )
)


class _WithoutDriver(FakeTensorMode):
    """Never touches the device, although `torch.cuda.is_available` says that there is one."""

    avoid_device_init = True


class FakeCuda(TorchDispatchMode):
    """A GPU for the length of a `with` block; `package` is the folder whose files and lines the records name."""

    def __init__(self, package: str = "stable_audio_tools") -> None:
        super().__init__()
        self.fake = _WithoutDriver(allow_non_fake_inputs=True)
        self.calls: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.host_copies: Counter[str] = Counter()
        self.conversions: Counter[str] = Counter()
        self.held_bytes = 0
        self.peak_bytes = 0
        self._package = f"/{package}/"
        self._held: set[int] = set()
        self._values = WeakIdKeyDictionary()  # what is known, as tensors on the CPU
        self._stack = contextlib.ExitStack()

    # ------------------------------------------------------------------ use

    @property
    def converted_bytes(self) -> int:
        return sum(self.conversions.values())

    @contextlib.contextmanager
    def hollow(self) -> Iterator[None]:
        """Tensors made inside have no contents on any device, the CPU included."""
        with self.fake:
            yield

    def restart(self) -> None:
        """Forget what was recorded; the peak begins at what is held now."""
        for record in (self.calls, self.waits, self.host_copies, self.conversions):
            record.clear()
        self.peak_bytes = self.held_bytes

    def __enter__(self) -> FakeCuda:
        self._prepare_torch()
        for target, replacement in self._stand_ins().items():
            self._stack.enter_context(mock.patch(target, replacement))
        was_lifting = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device="cuda")` then copies by an operator
        self._stack.callback(torch._C._set_only_lift_cpu_tensors, was_lifting)
        self._stack.callback(self._clear_caches)  # tensors of one block are of no use to the next
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def _clear_caches(self) -> None:
        name = self._package.strip("/")
        for module in [module for key, module in sys.modules.items() if key.split(".")[0] == name]:
            for entry in list(vars(module).values()):
                if hasattr(entry, "cache_clear"):
                    entry.cache_clear()

    @staticmethod
    def _prepare_torch() -> None:
        """Have PyTorch do, before anything is replaced, what it does once at the first use of a device."""
        with FakeTensorMode(), contextlib.suppress(RuntimeError):
            nn.init.uniform_(torch.empty(2, device="cuda"))

    def _stand_ins(self) -> dict[str, Any]:
        """Functions that need the driver, and what takes their place."""
        generator = torch.Generator

        class GeneratorOnCpu(generator):  # type: ignore[misc, valid-type]
            def __new__(cls, device: Any = "cpu") -> torch.Generator:
                return generator.__new__(cls)

        def synchronize(device: Any = None) -> None:
            self.waits[self._place()] += 1

        constants: dict[str, Any] = {
            "torch.cuda.is_available": True,
            "torch.cuda.device_count": 1,
            "torch.cuda.current_device": 0,
            "torch.cuda.is_bf16_supported": True,
            "torch.cuda.is_current_stream_capturing": False,
            "torch.cuda.get_device_capability": (9, 0),
            "torch.cuda.set_rng_state": None,
            "torch.cuda.manual_seed": None,
            "torch.cuda.manual_seed_all": None,
            "torch.cuda.empty_cache": None,
            "torch.cuda._lazy_init": None,
            "torch._subclasses.fake_tensor.init_gpu_context": None,
        }
        functions: dict[str, Any] = {name: _always(value) for name, value in constants.items()}
        return functions | {
            "torch.cuda.get_rng_state": lambda *args, **kwargs: generator().get_state(),
            "torch.cuda.max_memory_allocated": lambda *args, **kwargs: self.peak_bytes,
            "torch.cuda.memory_allocated": lambda *args, **kwargs: self.held_bytes,
            "torch.cuda.synchronize": synchronize,
            "torch.Generator": GeneratorOnCpu,
            "torch.nn.Module._apply": _apply,
        }

    # ------------------------------------------------------------------ every call of an operator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        inputs = [entry for entry in tree_iter((args, kwargs)) if isinstance(entry, Tensor)]
        on_device = any(tensor.device.type == "cuda" for tensor in inputs)
        if on_device and name in _WAITING:
            self.waits[self._place()] += 1
        if name == "aten::_local_scalar_dense" and isinstance(inputs[0], FakeTensor):
            if inputs[0] in self._values:
                return self._values[inputs[0]].item()
            return 0.5 if inputs[0].is_floating_point() else 1
        if name == "aten::equal" and any(isinstance(tensor, FakeTensor) for tensor in inputs):
            return False
        if name in _PINNING:
            return args[0]
        if on_device and name in _OF_ONE_TYPE:
            _check_types(name, inputs)
        by_mask = name == "aten::index" and _has_mask(args[1]) and any(isinstance(x, FakeTensor) for x in inputs)
        if by_mask:
            self.waits[self._place()] += 1  # how many entries are true
            args = (args[0], self._all_chosen(args[1]))
        device = kwargs.get("device")
        is_fake = any(isinstance(tensor, FakeTensor) for tensor in inputs)
        if is_fake or (device is not None and torch.device(device).type == "cuda"):
            if name == "aten::exponential_":
                kwargs = {**kwargs, "generator": None}  # which its meta kernel does not take
            with self.fake:
                result = func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        if func._schema.is_mutable:
            self._forget(inputs[:1])
        elif not by_mask and (is_fake or isinstance(result, FakeTensor)):
            result = self._with_values(result, func, args, kwargs, inputs)
        outputs = [entry for entry in tree_iter(result) if isinstance(entry, Tensor)]
        if on_device or any(tensor.device.type == "cuda" for tensor in outputs):
            self.calls[name] += 1
        if name in _COPYING and inputs and outputs:
            source = inputs[-1] if name == "aten::copy_" else inputs[0]
            self._record_copy(source, outputs[0], blocks=not _is_non_blocking(name, args, kwargs))
        for tensor in outputs:
            self._hold(tensor)
        return result

    def _with_values(
        self, result: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], inputs: Sequence[Tensor]
    ) -> Any:
        """The result of a call, with its values if they follow from known ones; on the CPU, the values themselves."""
        outputs = [entry for entry in tree_iter(result) if isinstance(entry, Tensor)]
        is_small = all(tensor.numel() <= _MOST_KNOWN for tensor in (*outputs, *inputs))
        unknown = [
            tensor
            for tensor in inputs
            if isinstance(tensor, nn.Parameter) or (isinstance(tensor, FakeTensor) and tensor not in self._values)
        ]
        if not outputs or not is_small or unknown or any(part in func._schema.name for part in _UNKNOWN):
            return result

        def known(entry: Any) -> Any:
            if isinstance(entry, FakeTensor):
                return self._values[entry]
            return torch.device("cpu") if isinstance(entry, torch.device) else entry

        values = func(*tree_map(known, tuple(args)), **tree_map(known, dict(kwargs)))
        if all(tensor.device.type == "cpu" for tensor in outputs):
            return values
        for tensor, value in zip(outputs, tree_iter(values)):
            self._values[tensor] = value
        return result

    def _forget(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            if tensor in self._values:
                del self._values[tensor]

    def _all_chosen(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Indices in place of masks, as if every entry were true."""
        with self.fake:
            return [
                torch.zeros(index.numel(), dtype=torch.long, device=index.device) if _is_mask(index) else index
                for index in indices
            ]

    def _record_copy(self, source: Tensor, target: Tensor, blocks: bool) -> None:
        if source.device.type != target.device.type:
            self.host_copies[self._place()] += 1
            if target.device.type == "cpu" and blocks:
                self.waits[self._place()] += 1
        elif source.device.type == "cuda" and source.dtype != target.dtype and isinstance(source, nn.Parameter):
            self.conversions[self._place()] += target.numel() * target.element_size()

    def _hold(self, tensor: Tensor) -> None:
        """Count the memory behind a tensor until it is freed."""
        if tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return
        size = storage.nbytes()
        self._held.add(key)
        self.held_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.held_bytes -= size

    def _place(self) -> str:
        """File and line of the package that is running, innermost."""
        frame = sys._getframe(1)
        while frame is not None:
            if self._package in frame.f_code.co_filename:
                return f"{frame.f_code.co_filename.rsplit(self._package, 1)[1]}:{frame.f_lineno}"
            frame = frame.f_back  # type: ignore[assignment]
        return "elsewhere"


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which for tensors without contents is not offered by PyTorch: parameters stay themselves."""
    if recurse:
        for child in module.children():
            child._apply(function)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            applied = function(parameter)
        if isinstance(parameter, FakeTensor):
            parameter.data = applied
            parameter.fake_device = applied.device
        elif isinstance(applied, FakeTensor):
            module._parameters[name] = nn.Parameter(applied, parameter.requires_grad)
        else:
            parameter.data = applied
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def _check_types(name: str, inputs: Sequence[Tensor]) -> None:
    types = {tensor.dtype for tensor in inputs if tensor.is_floating_point()}
    if len(types) > 1:
        raise RuntimeError(f"{name}: expected tensors of one dtype, got {', '.join(sorted(map(str, types)))}")


def _is_non_blocking(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    return bool(kwargs.get("non_blocking", len(args) > 2 and args[2] if name == "aten::copy_" else False))


def _always(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


def _has_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(_is_mask(index) for index in indices)
