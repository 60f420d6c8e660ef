"""Checksums of weight files that this package wrote."""

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

CHECKSUM = "crc32"  # key in the metadata of a safetensors file


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 over metadata, names, types, shapes and values."""
    crc = zlib.crc32(repr(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            crc = zlib.crc32(flat.view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
