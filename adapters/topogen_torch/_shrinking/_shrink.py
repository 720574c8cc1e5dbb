"""What is left of a model when the neurons that pruning made useless are gone."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._conversion._globs import quoted
from topogen_torch._conversion._sentences import reasons, refuse_wrapped
from topogen_torch._shrinking._between import Between, Constants, Norm
from topogen_torch._shrinking._follow import Chain, chains
from topogen_torch._shrinking._narrow import Change, Layer, Mask, ties
from topogen_torch._signals import undisturbed

__all__ = ["shrink"]

_log = logging.getLogger("topogen")


def shrink(model: nn.Module, *, drop_zeros: bool = False, inplace: bool = False) -> nn.Module:
    r"""Return a model without the neurons that make no difference: physically smaller, with the same outputs.

    Two kinds of neurons, or of channels of a convolution, go:

    - *Dead ends*, from which no path of connections leads to an output.
    - *Constants*, which no path reaches from an input: their value is the activation of their bias, and of what other
      constants add to it. What a constant c sends on is folded into the next layer, :math:`b_j + w_{ij} c`.

    Parameters
    ----------
    model : nn.Module
        Its inputs and outputs keep their sizes.
    drop_zeros : bool
        Whether a weight of exactly 0 is no connection, and leaves the sparse layers. By default every stored weight
        is one: those of a dense layer all are, and what a controller has grown starts at 0. With it the channels whose
        scale in a batch normalisation is 0 are constants too.
    inplace : bool
        Whether to change `model` instead of a copy. Parameters stay the same objects, of other shapes, and so do their
        gradients: make the optimizer anew, for its state does not follow.

    Returns
    -------
    nn.Module
        The same modules with fewer inputs and outputs. Names, training mode, dtype, device and ``requires_grad`` stay.

    Raises
    ------
    SpecError
        If `model` is no module, is wrapped or sharded, holds no data, or its own ``forward`` cannot be followed. The
        model is as it was.

    Notes
    -----
    Exact in evaluation mode, up to the rounding of the sums that are folded, as long as what is computed is finite. In
    training mode dead ends make no difference either, but for the numbers that dropout draws; a constant that passed a
    batch normalisation or a dropout does: there it was the normalisation's bias, or noise. A neuron that was a constant
    learned through its bias; what is folded is a part of the next bias, and learns with that.

    Followed are `SparseLinear`, `BlockSparseLinear`, `SparseConv1d`, `SparseConv2d`, and PyTorch's ``Linear`` and
    ``Conv1d`` to ``Conv3d`` with one group, as long as all that the one feeds is the next, with nothing between them
    but elementwise activations, dropout, max and average pooling, flattening of all but the batch (modules, or
    functions of the same names), ``PReLU`` and batch normalisation. What else reads a layer's output, a residual
    connection say, needs it whole: the layer keeps its outputs, and what is around it shrinks. For this the model is
    traced with `torch.fx`, in training and in evaluation mode. A module inside it whose ``forward`` depends on
    numbers, and layers with hooks, or called twice, stay as they are: the logger "topogen" names them with the reason,
    as a warning, and what was removed, as information, each once.

    A constant stays where it is none for what follows: other than 0 behind the zero padding of a convolution, or in
    front of a layer without a bias that no batch normalisation follows, whose running mean would take it. Neurons of a
    `BlockSparseLinear` go in whole blocks, a channel goes with all its numbers where it is flattened, and no layer
    loses all.

    Convolutions, and layers whose output's first size is asked for, are taken to get batches, and a batch normalisation
    behind a linear layer (batch, features).

    Time and memory: those of a copy, and of one matrix (inputs, outputs) of float64 for each dense layer.

    Examples
    --------
    >>> import numpy as np, torch, topogen_torch as tt
    >>> first, second = np.ones((3, 4)), np.ones((4, 2))
    >>> first[:, 1] = 0  # no path reaches neuron 1: it is the activation of its bias
    >>> second[3] = 0  # no path leads on from neuron 3
    >>> model = torch.nn.Sequential(tt.SparseLinear(first), torch.nn.ReLU(), tt.SparseLinear(second))
    >>> small = tt.shrink(model)
    >>> small[0].out_features, small[2].in_features
    (2, 2)
    >>> x = torch.ones(1, 3)
    >>> torch.allclose(small(x), model(x))
    True
    """
    checks.instance(model, "model", "shrink", nn.Module)
    for name, flag in (("drop_zeros", drop_zeros), ("inplace", inplace)):
        checks.instance(flag, name, "shrink", bool)
    refuse_wrapped(model, "shrink")
    for name, parameter in model.named_parameters():
        if parameter.is_meta or hasattr(parameter, "device_mesh"):
            held = "on meta" if parameter.is_meta else "sharded over processes"
            raise SpecError(f"The 'model' parameter of shrink must hold its data. Got {quoted(name)} {held}.")
    result = model if inplace else copy.deepcopy(model)
    found, left = chains(result, drop_zeros, "shrink")
    changes: list[Change] = []
    gone: list[str] = []
    for chain in found:
        narrower, kept = _narrowed(chain)
        changes += narrower
        gone += [
            f"{(~mask).sum()} of {mask.size} behind {quoted(name)}"
            for name, mask in zip(chain.names, kept, strict=True)
            if not mask.all()
        ]
    with undisturbed():
        for change in changes:
            change()
    if left:
        _log.warning("shrink leaves %d as they are: %s.", len(left), reasons(left))
    _log.info("shrink removes %s.", ", ".join(gone) or "no neurons")
    return result


def _narrowed(chain: Chain) -> tuple[list[Change], list[Mask]]:
    """Return what takes the useless channels out of a chain, and which channels of each layer stay."""
    layers, links = chain.layers, chain.links
    matrices = [(layer.connections(), layer.sums()) for layer in layers]
    constants = _constants(chain, matrices)
    channels = [np.ones(layer.outputs, np.bool_) for layer in layers]
    features = [np.ones(layer.inputs, np.bool_) for layer in layers]
    offsets: list[NDArray[np.float64] | None] = [None] * len(layers)
    matters = channels[-1]  # whose value an output depends on
    for k in range(len(layers) - 1, 0, -1):
        (connections, sums), (known, values) = matrices[k], constants[k]
        foldable = known if _takes_offsets(layers[k], links[k]) else known & (values == 0)
        read = connections @ matters.astype(np.int64) > 0
        channels[k - 1], features[k] = _whole(read & ~foldable, read, layers[k - 1], layers[k])
        matters = (read & features[k]).reshape(layers[k - 1].outputs, -1).any(1)
        folded = foldable & (values != 0) & ~features[k]
        if folded.any():
            offsets[k] = sums[folded].T @ values[folded]
    changes: list[Change] = []
    for layer, link, stay_in, stay_out, offset in zip(layers, links, features, channels, offsets, strict=True):
        changes += layer.narrowed(stay_in, stay_out, offset)
        owed = offset if layer.bias is None else None
        for step in link:
            changes += step.narrowed(stay_out, owed)
            stay_out, owed = step.widened(stay_out), None
    return changes, channels


def _constants(chain: Chain, matrices: list[tuple[Any, Any]]) -> list[Constants]:
    """Return which features of each layer are constants that it may be relieved of, if its bias takes them."""
    first = chain.layers[0].inputs
    constants = Constants(np.zeros(first, np.bool_), np.zeros(first))
    found: list[Constants] = []
    for layer, (connections, sums), link in zip(chain.layers, matrices, chain.links, strict=True):
        if layer.pads_with_zeros:
            constants = Constants(constants.known & (constants.values == 0), constants.values)
        found.append(constants)
        known, values = constants
        bias = np.zeros(layer.outputs) if layer.bias is None else layer.bias
        constants = Constants(connections.T @ (~known).astype(np.int64) == 0, bias + sums[known].T @ values[known])
        for step in link:
            constants = step.passed(constants)
    return found


def _takes_offsets(layer: Layer, link: list[Between]) -> bool:
    """Whether something can be added to what a layer puts out."""
    return layer.bias is not None or (bool(link) and isinstance(link[0], Norm))


def _whole(needed: Mask, read: Mask, before: Layer, behind: Layer) -> tuple[Mask, Mask]:
    """Return the channels of a layer that stay, and the features of the next: the needed ones and all tied to them.

    Where none is needed one stays, for a layer of nothing is none: the first that nobody reads, if there is such a one.
    """
    times, tied = ties(before, behind)
    features = needed if needed.any() else np.arange(len(needed)) == np.argmin(read)
    features = np.repeat(features.reshape(-1, tied).any(1), tied)
    return features[::times], features
