"""The contracts of a sparse layer, law by law, for whoever writes another one.

``assert_layer_contract(make_layer)`` is that of a linear layer: what its values and its pattern mean.
``assert_drop_in_contract(layer, twin, sample)`` is that of every layer: to be what its dense namesake is to PyTorch.
The project's own tests check its layers by them, plant one liar for each law, and show that it is caught.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

from topogen_torch._drop_in import DROP_IN_LAWS, assert_drop_in_contract

__all__ = ["DROP_IN_LAWS", "LAWS", "assert_drop_in_contract", "assert_layer_contract"]

MakeLayer = Callable[..., Any]


def assert_layer_contract(make_layer: MakeLayer, *, seed: int = 0) -> None:
    """Assert that the layers which `make_layer` builds keep every law in `LAWS`.

    Parameters
    ----------
    make_layer : callable
        ``make_layer(pattern, *, bias, dtype)`` returns a module with the attributes of `topogen_torch.SparseLinear`:
        ``values`` (in value ordering), ``bias``, ``pattern`` and ``to_scipy()``.
    seed : int
        Of the patterns and numbers that are tried.

    Raises
    ------
    AssertionError
        At the first law that is broken; the message names it.
    """
    for law in LAWS:
        try:
            law(make_layer, np.random.default_rng(seed))
        except AssertionError as error:
            raise AssertionError(f"{law.__name__}: {error}") from error
        except Exception as error:  # what must work and raises breaks the law too
            raise AssertionError(f"{law.__name__}: {type(error).__name__}: {error}") from error


def value_ordering(make_layer: MakeLayer, rng: np.random.Generator) -> None:
    """Check that `values` is row-major over (input, output) and `to_scipy` keeps every connection, zeros included."""
    for pattern in _patterns(rng):
        layer = _filled(make_layer, pattern, rng)
        _require(tuple(layer.values.shape) == (pattern.nnz,), f"values must have shape ({pattern.nnz},)")
        weights = layer.to_scipy()
        _require(weights.shape == pattern.shape, f"to_scipy must have shape {pattern.shape}, (inputs, outputs)")
        rows, columns = np.nonzero(pattern.toarray())
        _require(weights.nnz == pattern.nnz, "to_scipy must keep every stored connection")
        stored = weights.toarray()[rows, columns]
        _require(np.array_equal(stored, layer.values.detach().numpy()), "to_scipy must hold the values")
        _require(np.array_equal(layer.pattern.toarray(), pattern.toarray()), "pattern must be the one given")
        with torch.no_grad():
            layer.values.zero_()
        _require(layer.to_scipy().nnz == pattern.nnz, "to_scipy must keep connections whose weight is 0")


def forward_equals_dense(make_layer: MakeLayer, rng: np.random.Generator) -> None:
    """Check the output against the dense matrix in float64."""
    for pattern in _patterns(rng):
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-12)):
            for bias in (True, False):
                layer = _filled(make_layer, pattern, rng, bias=bias, dtype=dtype)
                x = _numbers(rng, (19, pattern.shape[0]), dtype)
                _require_close(layer(x), _dense(layer, pattern, x), tolerance, f"output in {dtype}, bias={bias}")


def gradients_equal_dense(make_layer: MakeLayer, rng: np.random.Generator) -> None:
    """Check all gradients against the dense matrix; values have one for each stored connection and no more."""
    for pattern in _patterns(rng):
        layer = _filled(make_layer, pattern, rng)
        x = _numbers(rng, (35, pattern.shape[0])).requires_grad_()
        dy = _numbers(rng, (35, pattern.shape[1]))
        layer(x).backward(dy)
        found = (x.grad, layer.values.grad, layer.bias.grad)
        parameters = (x, layer.values, layer.bias)
        expected = torch.autograd.grad(_dense(layer, pattern, x), parameters, dy, allow_unused=True)
        for name, mine, true, parameter in zip(("input", "values", "bias"), found, expected, parameters, strict=True):
            _require(mine is not None and mine.shape == parameter.shape, f"the gradient of {name} must have its shape")
            _require_close(mine, torch.zeros_like(parameter) if true is None else true, 1e-12, f"gradient of {name}")


def each_gradient_alone(make_layer: MakeLayer, rng: np.random.Generator) -> None:
    """Check that a gradient does not depend on which others are wanted."""
    pattern = _patterns(rng)[0]
    layer = _filled(make_layer, pattern, rng)
    x, dy = _numbers(rng, (9, pattern.shape[0])), _numbers(rng, (9, pattern.shape[1]))
    parameters = (x, layer.values, layer.bias)
    everything = torch.autograd.grad(layer(x.requires_grad_()), parameters, dy)
    for position, parameter in enumerate(parameters):
        for other in parameters:
            other.requires_grad_(other is parameter)
        (alone,) = torch.autograd.grad(layer(x), (parameter,), dy)
        _require_close(alone, everything[position], 1e-12, f"gradient {position} when only it is wanted")


def gradcheck(make_layer: MakeLayer, rng: np.random.Generator) -> None:
    """Check gradients by finite differences in float64."""
    for pattern in _patterns(rng)[:2]:
        layer = _filled(make_layer, pattern, rng)
        x = _numbers(rng, (3, pattern.shape[0])).requires_grad_()

        def call(x: Tensor, values: Tensor, bias: Tensor, layer: nn.Module = layer) -> Tensor:
            return torch.func.functional_call(layer, {"values": values, "bias": bias}, (x,))

        try:
            torch.autograd.gradcheck(call, (x, layer.values, layer.bias))
        except GradcheckError as error:
            raise AssertionError(str(error)) from error


def leading_dimensions(make_layer: MakeLayer, rng: np.random.Generator) -> None:
    """Check any leading dimensions, none and zero included, and an input that is not contiguous."""
    pattern = _patterns(rng)[0]
    layer = _filled(make_layer, pattern, rng)
    n_in, n_out = pattern.shape
    for leading in ((), (1,), (0,), (2, 3), (2, 0, 3), (17, 1, 2)):
        x = _numbers(rng, (*leading, n_in)).requires_grad_()
        y = layer(x)
        _require(tuple(y.shape) == (*leading, n_out), f"output for leading dimensions {leading}. Got {tuple(y.shape)}")
        _require_close(y, _dense(layer, pattern, x), 1e-12, f"output for leading dimensions {leading}")
        layer.zero_grad()
        y.sum().backward()
        _require(x.grad is not None and x.grad.shape == x.shape, f"input gradient for leading dimensions {leading}")
        if 0 in leading:
            _require(not layer.values.grad.any() and not layer.bias.grad.any(), "an empty batch has zero gradients")
    x = _numbers(rng, (n_in, 21)).t()
    _require_close(layer(x), _dense(layer, pattern, x), 1e-12, "output for a transposed input")


def thread_count(make_layer: MakeLayer, rng: np.random.Generator) -> None:
    """Check that results are bit-identical whatever the number of threads."""
    pattern = sp.csr_array(rng.random((300, 200)) < 0.3)
    layer = _filled(make_layer, pattern, rng, dtype=torch.float32)
    x = _numbers(rng, (700, 300), torch.float32).requires_grad_()
    dy = _numbers(rng, (700, 200), torch.float32)
    results = []
    for threads in (1, 2, 3):
        with _threads(threads):
            y = layer(x)
            results.append((y, *torch.autograd.grad(y, (x, layer.values, layer.bias), dy)))
    for result in results[1:]:
        _require(all(map(torch.equal, results[0], result)), "results must not depend on the number of threads")


def no_dense_temporary(make_layer: MakeLayer, rng: np.random.Generator) -> None:
    """Check that nothing of size inputs x outputs is allocated: here that would be 4 TB."""
    n = 1 << 20
    rows, columns = (rng.choice(n, 50, replace=False) for _ in range(2))
    pattern = sp.csr_array((np.ones(50, bool), (rows, columns)), shape=(n, n))
    layer = make_layer(pattern, bias=False, dtype=torch.float32)
    x = torch.ones(1, n, requires_grad=True)
    try:
        layer(x).sum().backward()
    except (RuntimeError, MemoryError) as error:
        raise AssertionError(f"a 2^20 x 2^20 layer of 50 connections must work: {error}") from error
    _require(bool((layer.values.grad == 1).all()), "the gradient of every value is 1 here")


def one_parameter_for_life(make_layer: MakeLayer, rng: np.random.Generator) -> None:
    """Check that `values` stays the same Parameter through steps, dtypes and loading."""
    pattern = _patterns(rng)[0]
    layer = _filled(make_layer, pattern, rng)
    parameter = layer.values
    _require(isinstance(parameter, nn.Parameter), "values must be a Parameter")
    _require(any(p is parameter for p in layer.parameters()), "values must be among the parameters")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(_numbers(rng, (4, pattern.shape[0]))).sum().backward()
    before = parameter.detach().clone()
    optimizer.step()
    _require(not torch.equal(before, parameter), "an optimizer must move the values")
    layer.load_state_dict(_filled(make_layer, _same_shape(rng, pattern), rng).state_dict())
    layer.float().double().train().eval()
    _require(layer.values is parameter, "values must stay the same Parameter")


def state_round_trip(make_layer: MakeLayer, rng: np.random.Generator) -> None:
    """Check that `state_dict`, through ``torch.save``, restores pattern and values together, whatever their number."""
    for pattern in _patterns(rng):
        layer = _filled(make_layer, pattern, rng)
        other = _filled(make_layer, _same_shape(rng, pattern), rng)
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        result = other.load_state_dict(torch.load(file, weights_only=True))
        _require(not result.missing_keys and not result.unexpected_keys, f"a layer's own state must fit: {result}")
        same = (other.to_scipy() != layer.to_scipy()).nnz == 0
        _require(same, "a loaded layer must have the weights of the saved one")
        _require(np.array_equal(other.pattern.toarray(), pattern.toarray()), "loading must restore the pattern")
        x = _numbers(rng, (5, pattern.shape[0])).requires_grad_()
        _require_close(other(x), _dense(layer, pattern, x), 1e-12, "output after loading")
        other(x).sum().backward()
        _require(other.values.grad.shape == layer.values.shape, "gradients must have the loaded shape")


def refused_state(make_layer: MakeLayer, rng: np.random.Generator) -> None:
    """Check that a state which cannot belong to the layer is refused and leaves it, bias included, as it was."""
    pattern = _patterns(rng)[0]
    donor = _filled(make_layer, pattern, rng).state_dict()
    layer = _filled(make_layer, _same_shape(rng, pattern), rng)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for name, broken in _broken_states(donor, make_layer, rng):
        for strict in (True, False):
            try:
                layer.load_state_dict(broken, strict=strict)
            except RuntimeError:
                pass
            else:
                raise AssertionError(f"a state with {name} must be refused, strict={strict}")
            after = layer.state_dict()
            unchanged = all(torch.equal(after[key], tensor) for key, tensor in before.items())
            _require(unchanged, f"a refused state ({name}, strict={strict}) must leave the layer unchanged")


def deepcopy(make_layer: MakeLayer, rng: np.random.Generator) -> None:
    """Check that a deep copy computes the same and shares no memory."""
    pattern = _patterns(rng)[0]
    layer = _filled(make_layer, pattern, rng)
    twin = copy.deepcopy(layer)
    x = _numbers(rng, (6, pattern.shape[0]))
    _require(torch.equal(layer(x), twin(x)), "a copy must compute the same")
    own = {tensor.data_ptr() for tensor in (*layer.parameters(), *layer.buffers()) if tensor.numel()}
    theirs = {tensor.data_ptr() for tensor in (*twin.parameters(), *twin.buffers()) if tensor.numel()}
    _require(not own & theirs, "a copy must share no memory")


LAWS: tuple[Callable[[MakeLayer, np.random.Generator], None], ...] = (
    value_ordering,
    forward_equals_dense,
    gradients_equal_dense,
    each_gradient_alone,
    gradcheck,
    leading_dimensions,
    thread_count,
    no_dense_temporary,
    one_parameter_for_life,
    state_round_trip,
    refused_state,
    deepcopy,
)


def _patterns(rng: np.random.Generator) -> list[sp.csr_array]:
    """Return patterns of every kind: wide, tall, 1 x N, N x 1, with empty rows and columns, full, and empty."""
    with_gaps = rng.random((23, 18)) < 0.3
    with_gaps[[0, 5]] = False
    with_gaps[:, [3, 17]] = False
    patterns = [with_gaps, rng.random((7, 40)) < 0.5, rng.random((1, 33)) < 0.5, rng.random((33, 1)) < 0.5]
    patterns += [np.ones((5, 6), bool), np.zeros((4, 3), bool)]
    return [sp.csr_array(pattern) for pattern in patterns]


def _same_shape(rng: np.random.Generator, pattern: sp.csr_array) -> sp.csr_array:
    """Return another pattern of the same shape with another number of connections."""
    while True:
        other = sp.csr_array(rng.random(pattern.shape) < rng.random())
        if other.nnz != pattern.nnz or pattern.shape[0] * pattern.shape[1] == 1:
            return other


def _numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype)


def _filled(
    make_layer: MakeLayer, pattern: sp.csr_array, rng: np.random.Generator, *, bias: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Any:  # fmt: skip
    """Make a layer whose parameters are all different from 0, so that a forgotten one shows."""
    layer = make_layer(pattern, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(_numbers(rng, tuple(parameter.shape), dtype))
    return layer


def _dense(layer: Any, pattern: sp.csr_array, x: Tensor) -> Tensor:
    """Compute the output from the pattern and the values alone, in float64: the truth."""
    rows, columns = (torch.from_numpy(part) for part in np.nonzero(pattern.toarray()))
    weights = torch.zeros(pattern.shape, dtype=torch.float64).index_put((rows, columns), layer.values.double())
    y = x.double() @ weights
    return y if layer.bias is None else y + layer.bias.double()


def _broken_states(
    donor: dict[str, Tensor], make_layer: MakeLayer, rng: np.random.Generator
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield states that differ from a good one in one respect each; index buffers are known by their shape alone."""
    values = donor["values"]
    yield "a missing value", donor | {"values": values[:-1].clone()}
    yield "values that are ints", donor | {"values": values.long()}
    yield "a bias of another size", donor | {"bias": donor["bias"][:-1].clone()}
    for name, tensor in donor.items():
        if name in ("values", "bias"):
            continue
        if tensor.shape == values.shape:
            yield f"{name} out of range", donor | {name: tensor + 10**6}
            yield f"negative {name}", donor | {name: tensor - 10**6}
            yield f"{name} in another order", donor | {name: tensor.flip(0)}
            yield f"repeated {name}", donor | {name: torch.zeros_like(tensor)}
        flipped = tensor.clone()
        flipped.view(-1)[-1] ^= 1
        yield f"one bit of {name} changed", donor | {name: flipped}
    yield "other sizes", _filled(make_layer, sp.csr_array(rng.random((18, 23)) < 0.5), rng).state_dict()
    for name in donor:
        yield f"no {name}", {key: value for key, value in donor.items() if key != name}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def _require_close(mine: Any, true: Tensor, tolerance: float, what: str) -> None:
    mine, true = mine.detach().double(), true.detach()
    error, scale = (float(part.abs().max()) if part.numel() else 0.0 for part in (mine - true, true))
    bound = tolerance * (1 + scale)
    _require(error <= bound, f"{what} is off by {error:.3g}, more than {bound:.3g}")
