"""Which layers of a model feed which, by tracing its ``forward`` once in training and once in evaluation mode.

Followed is what leads from one layer to the next alone: whatever else reads a layer's output (a residual connection, a
normalisation over channels, the model's own output) ends the chain, and the layer keeps all its outputs.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections import ChainMap, Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

from topogen.errors import SpecError
from topogen_torch._conversion._kinds import is_sparse
from topogen_torch._hooks import has_hooks
from topogen_torch._shrinking._between import Between, Channelwise, Flattened, Pool, between, unchanged
from topogen_torch._shrinking._narrow import LAYERS, Layer, has_floats, layer_of
from topogen_torch._stack import SparseSequential

__all__ = ["Chain", "chains"]

_ELEMENTWISE: frozenset[Any] = frozenset({
    F.celu, F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.logsigmoid, F.mish, F.relu, F.relu6,
    F.selu, F.silu, F.sigmoid, F.softplus, F.softsign, F.tanh, torch.relu, torch.relu_, torch.sigmoid, torch.tanh,
    "relu", "relu_", "sigmoid", "tanh",
})  # fmt: skip
_RESHAPED = ("view", "reshape")
_REQUIRED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_UNCHANGED = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
)
_POOLS: dict[Any, str] = {
    getattr(F, name): name
    for n in (1, 2, 3)
    for name in (f"max_pool{n}d", f"avg_pool{n}d", f"adaptive_max_pool{n}d", f"adaptive_avg_pool{n}d")
}


Way = tuple[list[Between], fx.Node | None]


@dataclass(frozen=True, slots=True)
class Chain:
    """Layers each of which is all that the one before it feeds.

    Attributes
    ----------
    names : list of str
    layers : list of Layer
    links : list of list of Between
        ``links[k]`` stands between layers k and k + 1; the last one begins what stands behind the last layer.
    """

    names: list[str]
    layers: list[Layer]
    links: list[list[Between]]


def chains(model: nn.Module, drop_zeros: bool, owner: str) -> tuple[list[Chain], dict[str, str]]:
    """Return the chains of a model, and why layers that could be in one are not, by name.

    Raises
    ------
    SpecError
        If the model's own ``forward`` cannot be followed.
    """
    if not _is_entered(model):
        return [], {} if type(model) in LAYERS else {"": _unlike(model)}
    nodes, opaque = _traced(model, owner)
    modules = dict(model.named_modules())
    left = {name: f"its forward cannot be followed ({reason})" for name, reason in opaque.items()}
    obstacle = _obstacles(modules, nodes)
    layers: dict[fx.Node, Layer] = {}
    steps: dict[fx.Node, Between | None] = {}
    followed = ChainMap[fx.Node, Any](layers, steps)
    for node in nodes:
        name = str(node.target)
        module = modules[name] if node.op == "call_module" else None
        if module is not None and name not in opaque and _holds_layers(module):
            layer, reason = layer_of(module, drop_zeros), obstacle(node, module)
            if layer is None or reason is not None:
                left[name] = reason or _unlike(module)
            else:
                layers[node] = layer
        elif module is None:
            steps[node] = _function(node, followed)
        elif not _is_altered(module):
            step = between(module, drop_zeros)
            steps[node] = None if isinstance(step, Channelwise) and obstacle(node, module) is not None else step
    ways = {node: _way(node, layers, steps) for node in layers}
    inner = {behind for _, behind in ways.values()}
    return [_chain(node, layers, ways) for node in layers if node not in inner], left


def _chain(node: fx.Node | None, layers: dict[fx.Node, Layer], ways: dict[fx.Node, Way]) -> Chain:
    chain = Chain([], [], [])
    while node is not None:
        chain.names.append(str(node.target))
        chain.layers.append(layers[node])
        way, node = ways[node]
        chain.links.append(way)
    return chain


# -- tracing -----------------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Records every module that is no mere container of others as one call."""

    def __init__(self, opaque: dict[str, str]) -> None:
        super().__init__()
        self.opaque = opaque
        self.entered: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.opaque or not _is_entered(m) or _is_altered(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        self.entered.append(name)
        if type(m) is SparseSequential:
            forward = partial(nn.Sequential.forward, m)
        result = super().call_module(m, forward, args, kwargs)
        self.entered.pop()
        return result


def _is_entered(module: nn.Module) -> bool:
    """Whether what the module computes is what its ``forward`` makes of others."""
    if type(module) in (nn.Sequential, SparseSequential):
        return True
    return not (is_sparse(module) or isinstance(module, LAYERS) or type(module).__module__.startswith("torch."))


def _is_altered(module: nn.Module) -> bool:
    return has_hooks(module) or "forward" in vars(module)


def _traced(model: nn.Module, owner: str) -> tuple[list[fx.Node], dict[str, str]]:
    """Return the nodes of the model's graph, and the modules inside it that could not be entered, with the reason."""
    called = f"Got a {type(model).__name__}"
    requirement = f"The 'model' parameter of {owner} must have a forward that can be followed."
    if "forward" in vars(model):
        raise SpecError(f"{requirement} {called} with a forward that is not its class's.")
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.default is not parameter.empty or parameter.kind not in _REQUIRED:
            raise SpecError(f"{requirement} {called}, whose parameter '{parameter.name}' need not be given.")
    opaque: dict[str, str] = {}
    while True:
        graphs: list[fx.Graph] = []
        for training in (True, False):
            tracer = _Tracer(opaque)
            try:
                graphs.append(tracer.trace(_shadow(model).train(training)))
            except Exception as error:  # whatever a stranger's forward raises when it gets no numbers
                reason = " ".join(str(error).split()) or type(error).__name__
                if not tracer.entered:
                    raise SpecError(f"{requirement} {called}: {reason.rstrip('.')}.") from error
                opaque[tracer.entered[-1]] = reason.rstrip(".")
                break
        else:
            if _steps(graphs[0]) != _steps(graphs[1]):
                raise SpecError(f"{requirement} {called} that takes another way in training than in evaluation mode.")
            return list(graphs[1].nodes), opaque


def _shadow(model: nn.Module) -> nn.Module:
    """Return a copy for the tracer, which runs the code of every forward; the parameters are the model's own."""
    shadow = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    if type(model) is SparseSequential:  # it asks for the shape of what comes in, and then computes the same
        return nn.Sequential(OrderedDict(shadow.named_children()))
    return shadow


def _steps(graph: fx.Graph) -> list[tuple[str, str, list[str]]]:
    return [(node.op, str(node.target), [other.name for other in node.all_input_nodes]) for node in graph.nodes]


# -- which layers can be changed ---------------------------------------------------------------------------------------


def _obstacles(modules: dict[str, nn.Module], nodes: list[fx.Node]) -> Callable[[fx.Node, nn.Module], str | None]:
    """Return what says why a layer that is called at a node must stay as it is."""
    calls = Counter(id(modules[str(node.target)]) for node in nodes if node.op == "call_module")
    owners = Counter(id(p) for module in modules.values() for p in module.parameters(recurse=False))
    leaves = [modules[str(node.target)] for node in nodes if node.op == "call_module"]
    inside = {id(module) for leaf in leaves for module in leaf.modules() if module is not leaf}
    read = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}

    def obstacle(node: fx.Node, module: nn.Module) -> str | None:
        if _is_altered(module):
            return "has hooks or a forward of its own, which expect the sizes that it has"
        if calls[id(module)] > 1 or id(module) in inside:
            return "is called more than once"
        if any(owners[id(parameter)] > 1 for parameter in module.parameters()):
            return "shares its weight with another module"
        if str(node.target) in read:
            return "has its weight read from outside"
        return None

    return obstacle


def _holds_layers(module: nn.Module) -> bool:
    return any(isinstance(inner, LAYERS) or is_sparse(inner) for inner in module.modules())


def _unlike(module: Any) -> str:
    if type(module) in LAYERS:
        return "has its channels in groups" if has_floats(module) else "has weights that are not plain floats"
    return f"a {type(module).__name__}, whose forward is not followed"


# -- what leads from a layer to the next -------------------------------------------------------------------------------


def _way(node: fx.Node, layers: dict[fx.Node, Layer], steps: Mapping[fx.Node, Between | None]) -> Way:
    """Return what stands between a layer and the one that it feeds, and that one; None if there is none."""
    layer, way = layers[node], list[Between]()
    while (reader := _only_reader(node)) is not None and _is_plain_call(reader, node):
        step = steps.get(reader)
        if step is None:
            break
        way.append(step)
        node = reader
    if reader is not None and reader in layers and _is_plain_call(reader, node) and _fit(layer, way, layers[reader]):
        return way, reader
    return [step for step in way[:1] if step.fits(layer.outputs, layer.dimensions)], None


def _is_plain_call(node: fx.Node, argument: fx.Node) -> bool:
    """Whether a module or a function gets one tensor, first, and everything else is constants or a batch size."""
    first = next(iter((*node.args, *node.kwargs.values())), None)
    return first is argument and (len(node.all_input_nodes) == 1 or node.target in _RESHAPED)


def _fit(layer: Layer, way: list[Between], following: Layer) -> bool:
    """Whether the channels of a layer are the features of the following one, and the modules between take them so."""
    width, dimensions = layer.outputs, layer.dimensions
    for step in way:
        if isinstance(step, Flattened) and dimensions:
            step.times, rest = divmod(following.inputs, width)
            width, dimensions = following.inputs, 0
            if rest:
                return False
        elif not step.fits(width, dimensions):
            return False
    return (width, dimensions) == (following.inputs, following.dimensions)


def _function(node: fx.Node, followed: Mapping[fx.Node, Any]) -> Between | None:
    """Return what a function or a method does to the channels of its first argument; None if that is not known.

    `followed` are the nodes before it that leave the batch where it is.
    """
    target: Any = node.target
    options = dict(node.kwargs)
    if node.op not in ("call_function", "call_method") or not node.args:
        return None
    first, *more = node.args
    if target in _RESHAPED and len(more) == 2 and more[1] == -1:
        return Flattened() if any(more[0] in _batch_sizes(one) for one in _before(first, followed)) else None
    if len(node.all_input_nodes) > 1:
        return None
    if target in _ELEMENTWISE:
        function = getattr(torch, target) if isinstance(target, str) else target
        return Between(lambda numbers: function(numbers, *more, **options))
    if target in _UNCHANGED:
        return Between(unchanged)
    if target in _POOLS:
        return Pool(_POOLS[target], exact=not _POOLS[target].startswith("avg"))
    if target in (torch.flatten, "flatten") and (more, options) in (([1], {}), ([], {"start_dim": 1})):
        return Flattened()
    return None


def _before(node: Any, followed: Mapping[fx.Node, Any]) -> Iterator[fx.Node]:
    """Yield a node and all that it was computed from, as long as the batch has stayed the first dimension."""
    while isinstance(node, fx.Node):
        yield node
        node = next(iter((*node.args, *node.kwargs.values())), None) if followed.get(node) is not None else None


def _only_reader(node: fx.Node) -> fx.Node | None:
    """Return the one node that computes with another's numbers; others may ask for the size of the batch."""
    sizes = _batch_sizes(node)
    asked = {*sizes, *(size.all_input_nodes[0] for size in sizes if size.target is operator.getitem)}
    readers = [user for user in node.users if user not in asked]
    return readers[0] if len(readers) == 1 else None


def _batch_sizes(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that are the number of samples: ``x.size(0)`` and ``x.shape[0]``."""
    found: list[fx.Node] = []
    for user in node.users:
        if (user.target, user.args, user.kwargs) == ("size", (node, 0), {}):
            found.append(user)
        elif user.target is getattr and user.args == (node, "shape"):
            entries = list(user.users)
            if all(entry.target is operator.getitem and entry.args == (user, 0) for entry in entries):
                found += entries
    return found
