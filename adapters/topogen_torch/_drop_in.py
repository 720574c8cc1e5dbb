"""The second contract of a sparse layer: wherever PyTorch takes its dense namesake, it takes the layer.

``assert_drop_in_contract(layer, twin, sample)`` compares a sparse layer with a dense module that holds the same
weights, and puts the layer through what the rest of a training program does with modules. Nothing is known of the
layer but that it is a module, so that one contract serves linear, convolutional, recurrent and attention layers.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

__all__ = ["DROP_IN_LAWS", "assert_drop_in_contract"]

STEPS = 50


@dataclass(frozen=True, slots=True)
class _Pair:
    """A sparse layer, its dense twin, and float64 inputs for both. A law takes what it changes from `fresh`."""

    layer: nn.Module
    twin: nn.Module
    sample: tuple[Any, ...]

    def fresh(self) -> tuple[nn.Module, nn.Module]:
        return copy.deepcopy(self.layer), copy.deepcopy(self.twin)

    def inputs(self, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
        """Return copies of the sample, float tensors as leaves that want a gradient."""

        def leaf(value: Any) -> Any:
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.detach().to(dtype).clone().requires_grad_() if floating else value

        return tree_map(leaf, self.sample)


Law = Callable[[_Pair], None]


def assert_drop_in_contract(
    layer: nn.Module, twin: nn.Module, sample: Any, *, laws: Sequence[Law] | None = None
) -> None:
    """Assert that a sparse layer can stand wherever its dense namesake can.

    Parameters
    ----------
    layer : nn.Module
        A sparse layer in float64 whose stored weights all differ from 0.
    twin : nn.Module
        The dense module with the same weights and zeros where there is no connection, ``layer.to_linear()`` and the
        like; it is trained beside the layer with those zeros held.
    sample : Tensor or tuple
        What both are called with, in float64.
    laws : sequence, optional
        A selection from `DROP_IN_LAWS`; all of them by default.

    Raises
    ------
    AssertionError
        At the first law that is broken; the message names it.
    """
    pair = _Pair(layer, twin, sample if isinstance(sample, tuple) else (sample,))
    for law in DROP_IN_LAWS if laws is None else laws:
        try:
            law(pair)
        except AssertionError as error:
            raise AssertionError(f"{law.__name__}: {error}") from error
        except Exception as error:  # what must work and raises breaks the law too
            raise AssertionError(f"{law.__name__}: {type(error).__name__}: {error}") from error


def same_outputs(pair: _Pair) -> None:
    """Check shapes, dtypes and numbers of the outputs, in float64 and float32."""
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-3)):
        layer, twin = (module.to(dtype) for module in pair.fresh())
        found, true = (_tensors(module(*pair.inputs(dtype))) for module in (layer, twin))
        _require(len(found) == len(true), f"{len(true)} output tensors. Got {len(found)}")
        for mine, other in zip(found, true, strict=True):
            _require(mine.shape == other.shape, f"shape {tuple(other.shape)}. Got {tuple(mine.shape)}")
            _require(mine.dtype == other.dtype, f"dtype {other.dtype}. Got {mine.dtype}")
            _require_close(mine, other, tolerance, f"the output in {dtype}")


def same_input_gradients(pair: _Pair) -> None:
    """Check the gradient of every input."""
    gradients = []
    for module in pair.fresh():
        inputs = pair.inputs()
        _loss(module(*inputs)).backward()
        gradients.append([leaf.grad for leaf in _leaves(inputs)])
    for position, (mine, true) in enumerate(zip(*gradients, strict=True)):
        _require((mine is None) == (true is None), f"input {position} must have a gradient where the dense layer's has")
        if true is not None:
            _require_close(mine, true, 1e-10, f"the gradient of input {position}")


def trains_alike(pair: _Pair) -> None:
    """Check the outputs after 50 steps of each optimizer, against the dense layer with its zeros held at zero."""
    for make in (
        lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
        lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    ):
        layer, twin = pair.fresh()
        masks = {name: p != 0 if p.ndim > 1 else torch.ones_like(p) for name, p in twin.named_parameters()}
        for module in (layer, twin):
            optimizer = make(module.parameters())
            for _ in range(STEPS):
                optimizer.zero_grad()
                _loss(module(*pair.inputs())).backward()
                if module is twin:
                    for name, parameter in twin.named_parameters():
                        if parameter.grad is not None:
                            parameter.grad *= masks[name]
                optimizer.step()
        before, mine, true = (_tensors(module(*pair.inputs())) for module in (pair.twin, layer, twin))
        _require(
            any(not torch.equal(a, b) for a, b in zip(before, true, strict=True)), "the sample must train the twin"
        )
        for a, b in zip(mine, true, strict=True):
            _require_close(a, b, 1e-8, f"the output after {STEPS} steps of {type(optimizer).__name__}")


def every_parameter_learns(pair: _Pair) -> None:
    """Check that gradients have their parameter's shape, add up, and can be clipped."""
    layer, _ = pair.fresh()
    _loss(layer(*pair.inputs())).backward()
    once = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    missing = [name for name, p in layer.named_parameters() if name not in once and p.requires_grad and p.numel()]
    _require(not missing, f"every parameter must get a gradient. Got none for {missing}")
    _loss(layer(*pair.inputs())).backward()
    for name, parameter in layer.named_parameters():
        if name in once:
            assert parameter.grad is not None
            _require(parameter.grad.shape == parameter.shape, f"the gradient of {name} must have its shape")
            _require_close(parameter.grad, 2 * once[name], 1e-12, f"the gradient of {name} after two backward passes")
    norm = nn.utils.clip_grad_norm_(layer.parameters(), 1e-3)
    _require(bool(norm > 1e-3), "the sample must have a gradient worth clipping")
    after = nn.utils.get_total_norm([p.grad for p in layer.parameters() if p.grad is not None])
    _require(float(after) <= 1.001e-3, f"clipped gradients must have norm 1e-3. Got {float(after):.3g}")


def thread_count(pair: _Pair) -> None:
    """Check that results are bit-identical whatever the number of threads."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_outcome(pair.fresh()[0], pair.inputs()))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for mine, first in zip(result, results[0], strict=True):
            _require(torch.equal(mine, first), "results must not depend on the number of threads")


def copies(pair: _Pair) -> None:
    """Check that deep copies and pickles compute the same and share no memory."""
    layer, _ = pair.fresh()
    for name, twin in (("deepcopy", copy.deepcopy(layer)), ("pickle", pickle.loads(pickle.dumps(layer)))):
        for mine, true in zip(_outcome(twin, pair.inputs()), _outcome(layer, pair.inputs()), strict=True):
            _require(torch.equal(mine, true), f"a copy by {name} must compute the same")
        own = {tensor.data_ptr() for tensor in (*layer.parameters(), *layer.buffers()) if tensor.numel()}
        theirs = {tensor.data_ptr() for tensor in (*twin.parameters(), *twin.buffers()) if tensor.numel()}
        _require(not own & theirs, f"a copy by {name} must share no memory")


def state_round_trip(pair: _Pair) -> None:
    """Check that a saved state, read with ``weights_only=True``, restores a layer whose weights have changed."""
    layer, _ = pair.fresh()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    expected = [value.clone() for value in _tensors(layer(*pair.inputs()))]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    changed = _tensors(layer(*pair.inputs()))
    _require(any(not torch.equal(a, b) for a, b in zip(changed, expected, strict=True)), "parameters must matter")
    result = layer.load_state_dict(state)
    _require(not result.missing_keys and not result.unexpected_keys, f"a layer's own state must fit. Got {result}")
    for mine, true in zip(_tensors(layer(*pair.inputs())), expected, strict=True):
        _require(torch.equal(mine, true), "a loaded layer must compute what the saved one did")


def reset(pair: _Pair) -> None:
    """Check that `reset_parameters` draws finite weights from torch's generator, where the dense layer can be reset."""
    layer, twin = pair.fresh()
    if not callable(getattr(twin, "reset_parameters", getattr(twin, "_reset_parameters", None))):
        return
    states = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            layer.reset_parameters()  # pyright: ignore[reportCallIssue]
        states.append([parameter.detach().clone() for parameter in layer.parameters()])
    first, again, other = states
    _require(all(map(torch.equal, first, again)), "one seed must give one set of weights")
    _require(any(not torch.equal(a, b) for a, b in zip(first, other, strict=True)), "another seed must give others")
    _require(all(bool(p.isfinite().all()) for p in first), "new weights must be finite")


def compiled(pair: _Pair) -> None:
    """Check ``torch.compile(fullgraph=True)``, forward and backward, traced ahead of time."""
    layer, _ = pair.fresh()
    torch.compiler.reset()
    with warnings.catch_warnings():  # torch's tracer makes an object of the autograd function, and warns of itself
        warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
        found = _outcome(torch.compile(layer, fullgraph=True, backend="aot_eager"), pair.inputs())
    for mine, true in zip(found, _outcome(layer, pair.inputs()), strict=True):
        _require_close(mine, true, 1e-12, "a result of the compiled layer")


def exported(pair: _Pair) -> None:
    """Check that ``torch.export`` captures the layer whole and that the program computes the same."""
    layer, _ = pair.fresh()
    inputs = tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, pair.inputs())
    program = torch.export.export(layer, inputs)
    for mine, true in zip(_tensors(program.module()(*inputs)), _tensors(layer(*inputs)), strict=True):
        _require_close(mine, true, 1e-12, "the output of the exported program")


def functional(pair: _Pair) -> None:
    """Check ``torch.func.functional_call``: other parameters, the module unchanged."""
    layer, _ = pair.fresh()
    parameters = {name: (2 * p.detach()).requires_grad_() for name, p in layer.named_parameters()}
    found = _loss(torch.func.functional_call(layer, parameters, pair.inputs()))
    torch.autograd.grad(found, list(parameters.values()), allow_unused=True)
    plain = _loss(layer(*pair.inputs()))
    _require(not torch.equal(found, plain), "functional_call must use the parameters that it is given")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2)
    _require_close(found, _loss(layer(*pair.inputs())), 1e-12, "the loss with other parameters")


def checkpointed(pair: _Pair) -> None:
    """Check activation checkpointing: recomputed in the backward pass, the gradients are bit-identical."""
    layer, _ = pair.fresh()
    plain = _outcome(layer, pair.inputs())
    again = _outcome(lambda *inputs: checkpoint(layer, *inputs, use_reentrant=False), pair.inputs(), layer)
    for mine, true in zip(again, plain, strict=True):
        _require(torch.equal(mine, true), "checkpointing must change nothing")


def autocast(pair: _Pair) -> None:
    """Check autocast to bfloat16: the dense layer's output dtype, numbers near it, float32 gradients."""
    results = []
    for module in (module.float() for module in pair.fresh()):
        inputs = pair.inputs(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = _tensors(module(*inputs))
        torch.stack([value.float().square().sum() for value in outputs]).sum().backward()
        wrong = {p.grad.dtype for p in module.parameters() if p.grad is not None} - {torch.float32}
        _require(not wrong, f"gradients of float32 parameters must be float32. Got {wrong}")
        results.append(outputs)
    for mine, true in zip(*results, strict=True):
        _require(mine.dtype == true.dtype, f"output of {true.dtype} under autocast. Got {mine.dtype}")
        _require_close(mine, true, 0.05, "the output under autocast")


def averaged(pair: _Pair) -> None:
    """Check weight averaging (EMA, SWA): the average of two models lies between them."""
    layer, _ = pair.fresh()
    average = torch.optim.swa_utils.AveragedModel(layer)
    average.update_parameters(layer)
    before = [p.detach().clone() for p in layer.parameters()]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1)
    average.update_parameters(layer)
    for mine, start in zip(average.module.parameters(), before, strict=True):
        _require_close(mine, start + 0.5, 1e-12, "an averaged parameter")
    _tensors(average(*pair.inputs()))


def parameter_groups(pair: _Pair) -> None:
    """Check that an optimizer takes the parameters in groups of their own, and moves each with its own rate."""
    layer, _ = pair.fresh()
    named = [(name, p) for name, p in layer.named_parameters() if p.numel()]
    before = {name: p.detach().clone() for name, p in named}
    optimizer = torch.optim.SGD([{"params": [p], "lr": 0.1 * (k % 2)} for k, (_, p) in enumerate(named)])
    _loss(layer(*pair.inputs())).backward()
    optimizer.step()
    for k, (name, parameter) in enumerate(named):
        moved = before[name] - parameter
        assert parameter.grad is not None
        _require_close(moved, 0.1 * (k % 2) * parameter.grad, 1e-12, f"the step of {name}")


DROP_IN_LAWS: tuple[Law, ...] = (
    same_outputs,
    same_input_gradients,
    trains_alike,
    every_parameter_learns,
    thread_count,
    copies,
    state_round_trip,
    reset,
    compiled,
    exported,
    functional,
    checkpointed,
    autocast,
    averaged,
    parameter_groups,
)


def _tensors(outputs: Any) -> list[Tensor]:
    return [value for value in tree_leaves(outputs) if isinstance(value, Tensor)]


def _leaves(inputs: Any) -> list[Tensor]:
    return [value for value in _tensors(inputs) if value.requires_grad]


def _loss(outputs: Any) -> Tensor:
    """Return a number to which every output contributes differently."""
    terms = [
        (value * torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)).square().mean()
        for value in _tensors(outputs)
        if value.is_floating_point() and value.numel()
    ]
    return torch.stack(terms).sum()


def _outcome(call: Any, inputs: Any, module: nn.Module | None = None) -> list[Tensor]:
    """Return outputs, and the gradients of inputs and parameters, of one forward and backward pass."""
    parameters = (call if module is None else module).parameters()
    wanted = [*_leaves(inputs), *(p for p in parameters if p.requires_grad)]
    outputs = call(*inputs)
    gradients = torch.autograd.grad(_loss(outputs), wanted, allow_unused=True, materialize_grads=True)
    return [*_tensors(outputs), *gradients]


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def _require_close(mine: Tensor, true: Tensor, tolerance: float, what: str) -> None:
    mine, true = mine.detach().double(), true.detach().double()
    _require(mine.shape == true.shape, f"{what} must have shape {tuple(true.shape)}. Got {tuple(mine.shape)}")
    error, scale = (float(part.abs().max()) if part.numel() else 0.0 for part in (mine - true, true))
    _require(error <= tolerance * (1 + scale), f"{what} is off by {error:.3g}, more than {tolerance * (1 + scale):.3g}")
