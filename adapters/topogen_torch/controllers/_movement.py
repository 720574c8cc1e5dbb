"""Movement pruning: a connection is worth as much as training moves it away from zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topogen.errors import SpecError
from topogen_torch._layout import is_hash_of
from topogen_torch._patterned import Patterned
from topogen_torch._rewire import Places, places_of
from topogen_torch.controllers._probe import of_units, sparse_layers

__all__ = ["Movement"]


class Movement:
    r"""Score that grows as training moves a weight away from zero: :math:`-\sum_t w_t\, \partial L / \partial w_t`.

    Parameters
    ----------
    model : nn.Module
        With at least one topogen layer.

    Raises
    ------
    SpecError
        If the model has no sparse layer.

    Notes
    -----
    Call `step` when the gradients of a step are complete and the weights not yet updated: after ``loss.backward()``,
    before ``optimizer.step()``. The object itself is a criterion for any controller's `score`, and `scores` returns
    what it has now. Scores follow the connections: those of survivors stay when a controller changes the pattern, and
    newcomers begin at 0. Of a block or a convolution kernel the sum over its weights counts.

    The scores have the dtype of the values, or float32 for shorter ones: 4 bytes a unit, and 8 bytes for its place.

    References
    ----------
    V. Sanh, T. Wolf, A. Rush, "Movement pruning: adaptive sparsity by fine-tuning", NeurIPS 2020, equation (3).

    Examples
    --------
    >>> import torch, topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10])))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> movement = tt.Movement(model)
    >>> prune = tt.GradualMagnitude(
    ...     model, optimizer, density=0.1, begin_step=0, end_step=8, update_every=4, score=movement
    ... )
    >>> for step in range(8):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(16, 20)).square().mean().backward()
    ...     movement.step()
    ...     optimizer.step()
    ...     changed = prune.step()
    >>> model[0].nnz
    20
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._layers = sparse_layers(model, "Movement")
        self._tracks = {name: _Track(layer) for name, layer in self._layers.items()}

    def step(self) -> None:
        """Add this step's movement, from the values and the gradients that they hold.

        Raises
        ------
        SpecError
            If no layer holds a gradient. A layer that holds none, where others do, has not moved.
        """
        held = {name: layer for name, layer in self._layers.items() if layer.values.grad is not None}
        if not held:
            raise SpecError(
                "Movement.step needs the gradients of the sparse layers' values. Got none: call it after "
                "loss.backward() and before optimizer.zero_grad()."
            )
        for name, layer in held.items():
            gradient = layer.values.grad
            assert gradient is not None
            self._tracks[name].add(-of_units(layer.values.detach() * gradient))

    def scores(self) -> dict[str, Tensor]:
        """Return the scores so far, shape (units,), by the names of the sparse layers."""
        return {name: track.followed().clone() for name, track in self._tracks.items()}

    def __call__(self, layer: Patterned) -> Tensor:
        """Return the scores of a layer of the model, for a controller.

        Raises
        ------
        SpecError
            If it is a layer of another model.
        """
        for name, own in self._layers.items():
            if own is layer:
                return self._tracks[name].followed()
        raise SpecError(
            f"Movement must score layers of its own model. Got a {type(layer).__name__} that is none of "
            f"{', '.join(map(repr, self._layers))}."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the scores with the patterns that they belong to, as tensors, strings and dicts."""
        return {
            name: {"scores": track.followed().clone(), "pattern_hash": track.seen.hex()}
            for name, track in self._tracks.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state: load the model's first, so that the patterns are those of the state.

        Raises
        ------
        SpecError
            If it is of other layers or other patterns. Nothing is changed.
        """
        if list(state) != list(self._tracks):
            raise SpecError(f"The state of Movement must be of the layers {list(self._tracks)}. Got {list(state)}.")
        for name, layer in self._layers.items():
            now = bytes(layer.pattern_hash.tolist()).hex()
            stored = state[name]["pattern_hash"]
            if stored != now and not is_hash_of(layer._stored_pattern, stored):
                raise SpecError(
                    f"The state of Movement must belong to the model's pattern in layer '{name}', {now[:12]}...: load "
                    f"the model's state first. Got {stored[:12]}..."
                )
        for name, layer in self._layers.items():
            track = _Track(layer)
            track.add(state[name]["scores"].to(track.total))
            self._tracks[name] = track


class _Track:
    """The sums of one layer, and where its connections were when they were last looked at."""

    def __init__(self, layer: Patterned) -> None:
        self.layer = layer
        long = torch.promote_types(layer.values.dtype, torch.float32)
        self.total = torch.zeros(layer.values.shape[0], dtype=long, device=layer.values.device)
        self.seen = bytes(layer.pattern_hash.tolist())
        self._places: Places = places_of(layer)

    def add(self, moved: Tensor) -> None:
        self.followed().add_(moved)

    def followed(self) -> Tensor:
        """Return the sums of the connections that the layer has now."""
        now = bytes(self.layer.pattern_hash.tolist())
        if now != self.seen:
            places = places_of(self.layer)
            _, target, origin = np.intersect1d(places, self._places, assume_unique=True, return_indices=True)
            total = torch.zeros(len(places), dtype=self.total.dtype, device=self.layer.values.device)
            device = total.device
            total[torch.from_numpy(target).to(device)] = self.total.to(device)[torch.from_numpy(origin).to(device)]
            self.total, self.seen, self._places = total, now, places
        return self.total
