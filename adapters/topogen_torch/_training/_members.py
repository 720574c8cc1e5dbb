"""The models that a run trains: the sparse one, and the twins that it is compared with."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load as from_safetensors
from torch import Tensor, nn

import topogen as tg
from topogen.errors import FormatError
from topogen_torch import narrow_sizes
from topogen_torch._layers import SparseLinear
from topogen_torch._stack import SparseSequential, sparse_mlp
from topogen_torch._training._methods import apply_once, is_dynamic, is_once, make_method
from topogen_torch._training._settings import SCORED, Settings
from topogen_torch._training._train import Method
from topogen_torch.data import DataSet

__all__ = [
    "START",
    "Member",
    "follows_method",
    "members",
    "method_of",
    "model_from_weights",
    "model_of",
    "topology_of",
]

START = "start.safetensors"  # in a run's folder: the weights that it begins with
_INITIAL = 101  # names, below a member's seed, the draw of its initial weights; `_exact` has 100


class Member(NamedTuple):
    """One training of a run: which of the models, and with which seed."""

    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}, seed {self.seed}"

    @property
    def name(self) -> str:
        """As its files are called."""
        return f"{self.kind}-seed{self.seed}"


def members(settings: Settings) -> Iterator[Member]:
    """Yield the trainings of a run, in order; of each seed the sparse one comes first."""
    kinds = dict.fromkeys(("sparse", *(_twins(settings) if settings.twins else ()), *settings.baselines))
    for repeat in range(settings.repeats):
        for kind in kinds:
            yield Member(kind, settings.seed + repeat)


def _twins(settings: Settings) -> tuple[str, ...]:
    if settings.start is not None:
        return ()
    if is_dynamic(settings.method):
        return ("dense", "static")
    return ("dense", "random") if settings.method is None or is_once(settings.method) else ("dense",)


def follows_method(member: Member) -> bool:
    """Whether a member is changed by the run's method, or by what the method has to beat."""
    return member.kind in ("sparse", *SCORED)


def topology_of(settings: Settings, member: Member) -> tg.Topology:
    """Return the topology that a member begins with, nothing pruned yet; of the dense one it is never needed."""
    assert settings.spec is not None
    net = tg.generate(settings.spec, rng=member.seed)
    if member.kind != "random":
        return net
    density = tuple(layer.nnz / (layer.shape[0] * layer.shape[1]) for layer in net)
    return tg.generate(tg.ErdosRenyi(sizes=net.sizes, density=density), rng=member.seed)


def model_of(
    settings: Settings,
    member: Member,
    data: DataSet,
    start: Path | None = None,
    trained: nn.Module | None = None,
) -> nn.Module:
    """Return a member's model as its training begins.

    Its weights are those of the file `start`, where the run begins with weights, or drawn for the actual fan-in, with
    biases 0; a method that prunes once has pruned them. A twin that is to be as large as the sparse model looks at what
    became of that, `trained`; without it, at what it begins with.
    """
    if member.kind == "dense":
        assert settings.spec is not None
        with _initial_draws(member):
            return _dense_mlp(settings.spec.sizes)
    if member.kind == "narrow" or (member.kind == "random" and (settings.method or settings.start)):
        like = trained or model_of(settings, Member("sparse", member.seed), data, start)
        with _initial_draws(member):
            return _narrow_like(like) if member.kind == "narrow" else _random_like(like, member)
    if settings.start is not None:
        assert start is not None
        model: nn.Module = model_from_weights(start, settings.start)
    else:
        with _initial_draws(member):
            model = sparse_mlp(topology_of(settings, member))
    if follows_method(member) and is_once(settings.method):
        apply_once(settings.method, model, data, seed=member.seed, baseline=_baseline(member))
    return model


def method_of(settings: Settings, member: Member, data: DataSet) -> Method | None:
    """Return the method that accompanies a member's training."""
    if not follows_method(member) or settings.method is None or is_once(settings.method):
        return None
    if callable(settings.method):
        return settings.method
    return make_method(settings.method, data, epochs=settings.epochs, seed=member.seed, baseline=_baseline(member))


def _baseline(member: Member) -> str | None:
    return member.kind if member.kind in SCORED else None


def model_from_weights(path: Path, digest: str | None = None) -> SparseSequential:
    """Return the multilayer perceptron whose weights a file holds, rectifiers between its layers.

    Parameters
    ----------
    path : Path
        safetensors, as a run writes it, or of `torch.nn.Linear` layers: a matrix ``name.weight`` and, or not, a vector
        ``name.bias`` each. The layers follow each other in the order of their names, numbers in them by their value.
    digest : str, optional
        SHA-256 that the file must have.

    Raises
    ------
    FormatError
        If it is none of these, the sizes of neighbouring layers do not match, or the digest is another.
    """
    content = path.read_bytes()
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise FormatError(f"{path} must be the weights that the run began with: its SHA-256 must be {digest[:12]}...")
    try:
        state: dict[str, Tensor] = from_safetensors(content)
        names = sorted({name.rpartition(".")[0] for name in state}, key=_by_number)
        layers = [_layer({key: state[f"{name}.{key}"] for key in _keys(state, name)}) for name in names]
    except Exception as error:  # safetensors has no base class of errors, and a foreign file can lack anything
        raise FormatError(f"{path} holds no layers that can be read: {' '.join(str(error).split())}") from None
    for before, behind in pairwise(layers):
        if before.out_features != behind.in_features:
            raise FormatError(
                f"{path} must hold layers that follow each other. {before.out_features} outputs meet "
                f"{behind.in_features} inputs."
            )
    if not layers:
        raise FormatError(f"{path} must hold the weights of at least one layer. Got none.")
    modules = [module for layer in layers for module in (layer, nn.ReLU())]
    return SparseSequential(*modules[:-1])


def _keys(state: Mapping[str, Tensor], name: str) -> list[str]:
    return [key.removeprefix(f"{name}.") for key in state if key.rpartition(".")[0] == name]


def _layer(state: dict[str, Tensor]) -> SparseLinear:
    if "weight" in state:
        weight = state["weight"]
        linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias="bias" in state)
        linear.load_state_dict(state)
        assert isinstance(linear, nn.Linear)
        return SparseLinear.from_linear(linear, np.ones((weight.shape[1], weight.shape[0]), np.bool_))
    n_in, n_out = state["sizes"].tolist()
    layer = SparseLinear(np.zeros((n_in, n_out), np.bool_), bias="bias" in state)
    layer.load_state_dict(state)
    return layer


def _by_number(name: str) -> list[Any]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _random_like(model: nn.Module, member: Member) -> nn.Module:
    """Return a net with as many connections in each layer, elsewhere, and weights of its own."""
    density = tuple(layer.density for layer in _sparse_layers(model))
    return sparse_mlp(tg.generate(tg.ErdosRenyi(sizes=_sizes(model), density=density), rng=member.seed))


def _narrow_like(model: nn.Module) -> nn.Module:
    """Return a dense net with as many parameters; with one neuron a hidden layer where that is more already."""
    sizes = _sizes(model)
    least = sum((n_in + 1) * n_out for n_in, n_out in pairwise((sizes[0], *(1 for _ in sizes[1:-1]), sizes[-1])))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return _dense_mlp(narrow_sizes(sizes, parameters=max(parameters, least))[0])


def _sparse_layers(model: nn.Module) -> list[SparseLinear]:
    return [module for module in model.modules() if isinstance(module, SparseLinear)]


def _sizes(model: nn.Module) -> tuple[int, ...]:
    layers = _sparse_layers(model)
    return (layers[0].in_features, *(layer.out_features for layer in layers))


@contextmanager
def _initial_draws(member: Member) -> Iterator[None]:
    """Let torch draw what the member's seed alone decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(tg.stream(np.random.SeedSequence(member.seed), _INITIAL).integers(2**62)))
        yield


def _dense_mlp(sizes: tuple[int, ...]) -> nn.Module:
    modules: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        linear = nn.Linear(n_in, n_out)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu")  # as the sparse layers
        nn.init.zeros_(linear.bias)
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])
