"""The adapted weight W' of a matrix W (rows, cols), and the gains by which a layer reaches it without building W'.

| type | W' |
|---|---|
| `lora` | W + s B A |
| `dora-rows` | m_r * (W + s B A) / row norms |
| `dora-cols` | m_c * (W + s B A) / column norms |
| `bora` | m_c * V / column norms of V, with V of `dora-rows` |

(Hu et al. 2022, Liu et al. 2024, Wang et al. 2024.) The -xs forms have B = U and A = M V^T, from the leading singular
vectors of W (Bałazy et al. 2024). Norms are of the sum, and gradients flow through them, but W and B A are not added
for them: |W_i + s B_i A|^2 = |W_i|^2 + 2 s B_i (A W_i^T) + s^2 B_i (A A^T) B_i^T costs a rank-wide product.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import BackwardCFunction, FunctionCtx

_SEPARATE = 1e-6  # of singular values, the smallest kept to the largest
TINY = 1e-12  # of squared norms: a row of zeros stays one


class Gains(NamedTuple):
    """W' = rows (W + s B A) cols; None stands for ones."""

    rows: Tensor | None
    cols: Tensor | None


class Magnitudes(NamedTuple):
    rows: Tensor | None
    cols: Tensor | None


def row_squares(weight: Tensor) -> Tensor:
    """W (rows, cols) -> (rows,)"""
    return weight.to(_wide(weight)).square().sum(1)


def col_squares(weight: Tensor) -> Tensor:
    """W (rows, cols) -> (cols,)"""
    return weight.to(_wide(weight)).square().sum(0)


def gains(
    weight: Tensor, up: Tensor, down: Tensor, scale: float, magnitudes: Magnitudes, squares: tuple[Tensor, Tensor]
) -> Gains:
    """W, B (rows, r), A (r, cols); `squares` are the `row_squares` and `col_squares` of W."""
    if magnitudes.rows is None and magnitudes.cols is None:
        return Gains(None, None)
    rows = None if magnitudes.rows is None else magnitudes.rows / _row_norms(weight, up, down, scale, squares[0])
    if magnitudes.cols is None:
        return Gains(rows, None)
    if rows is None:
        return Gains(None, magnitudes.cols / _col_norms(weight, up, down, scale, squares[1]))
    squared = _weighted_squares(weight, rows.square())
    return Gains(rows, magnitudes.cols / _col_norms(weight, up, down, scale, squared, rows.square()))


def adapted_weight(weight: Tensor, up: Tensor, down: Tensor, scale: float, magnitudes: Magnitudes) -> Tensor:
    """Return W'."""
    adapted = weight + scale * (up @ down)
    if magnitudes.rows is not None:
        adapted = adapted * (magnitudes.rows / _norm(adapted.square().sum(1)))[:, None]
    if magnitudes.cols is not None:
        adapted = adapted * (magnitudes.cols / _norm(adapted.square().sum(0)))
    return adapted


def matrix_of(factors: Mapping[str, Tensor]) -> Tensor:
    """Return the matrix (rows, cols) that plain, Hadamard or Kronecker factors make, before its scale."""
    if "lora_A" in factors:
        return factors["lora_B"] @ factors["lora_A"]
    if "hada_w1_a" in factors:
        return (factors["hada_w1_a"] @ factors["hada_w1_b"]) * (factors["hada_w2_a"] @ factors["hada_w2_b"])
    second = factors["lokr_w2"] if "lokr_w2" in factors else factors["lokr_w2_a"] @ factors["lokr_w2_b"]
    return torch.kron(factors["lokr_w1"], second)


def singular_bases(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U (rows, r) and V (cols, r) of W, each pair signed so that the largest entry of its column of U is positive."""
    matrix = (weight.cpu() if weight.device.type == "mps" else weight).detach().double()  # Apple's GPUs have no float64
    left, values = leading_vectors(matrix if len(matrix) <= matrix.shape[1] else matrix.T, rank)
    if values[-1] <= _SEPARATE * values[0]:  # too close to singular to compute the other side
        full, _, right = torch.linalg.svd(matrix, full_matrices=False)
        left, right = full[:, :rank], right[:rank].T
    elif len(matrix) <= matrix.shape[1]:
        right = matrix.T @ left / values
    else:
        left, right = matrix @ left / values, left
    signs = left.gather(0, left.abs().argmax(0, keepdim=True)).sign()
    signs = torch.where(signs == 0, 1.0, signs)
    dtype = _wide(weight)
    return (left * signs).to(weight.device, dtype), (right * signs).to(weight.device, dtype)


def leading_vectors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The first left singular vectors (rows, r) of a float64 matrix (rows, cols), and its singular values (r,).

    They are the last eigenvectors of W W^T; on a CPU only those are computed.
    """
    product = matrix @ matrix.T
    if product.device.type == "cpu":
        from scipy.linalg import eigh

        rows = len(product)
        squares, vectors = map(torch.from_numpy, eigh(product.numpy(), subset_by_index=[rows - rank, rows - 1]))
    else:
        squares, vectors = torch.linalg.eigh(product)
    return vectors[:, -rank:].flip(1), squares[-rank:].flip(0).clamp_min(0).sqrt()


def _row_norms(weight: Tensor, up: Tensor, down: Tensor, scale: float, squares: Tensor) -> Tensor:
    across = (down.to(weight.dtype) @ weight.T).to(up.dtype)  # (r, rows)
    mixed = (up * across.T).sum(1)
    own = ((up @ (down @ down.T)) * up).sum(1)
    return _norm(squares + 2 * scale * mixed + scale**2 * own)


def _col_norms(
    weight: Tensor, up: Tensor, down: Tensor, scale: float, squares: Tensor, row_weights: Tensor | None = None
) -> Tensor:
    weighted = up if row_weights is None else up * row_weights[:, None]
    across = (weighted.T.to(weight.dtype) @ weight).to(up.dtype)  # (r, cols)
    mixed = (down * across).sum(0)
    own = (((weighted.T @ up) @ down) * down).sum(0)
    return _norm(squares + 2 * scale * mixed + scale**2 * own)


def _norm(squares: Tensor) -> Tensor:
    return squares.clamp_min(TINY).sqrt()


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


class _WeightedSquares(Function):
    """sum_i w_i W_ij^2; the squares are computed again for the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, row_weights: Tensor) -> Tensor:
        return row_weights @ weight.to(row_weights.dtype).square()

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: BackwardCFunction, *gradients: Tensor) -> tuple[None, Tensor]:
        (weight,) = ctx.saved_tensors
        return None, weight.to(gradients[0].dtype).square() @ gradients[0]


def _weighted_squares(weight: Tensor, row_weights: Tensor) -> Tensor:
    result: Tensor = _WeightedSquares.apply(weight, row_weights)
    return result


class _Enlarged(Function):
    """x + more x, with one pass over the gradient for each input; autograd alone would take five."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, more: Tensor) -> Tensor:
        return torch.addcmul(x, x, more)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: BackwardCFunction, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        x, more = saved
        (gradient,) = gradients
        of_x = torch.addcmul(gradient, gradient, more) if ctx.needs_input_grad[0] else None
        return of_x, (gradient * x).sum_to_size(more.shape)


def enlarged(x: Tensor, more: Tensor) -> Tensor:
    """Return (1 + more) x without rounding 1 + more to the precision of x."""
    result: Tensor = _Enlarged.apply(x, more)
    return result
