"""What every layer with stored connections shares: its values, the pattern as buffers, and a state that is whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import scipy.sparse as sp
import torch
from torch import Tensor, nn

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._gpu._choose import on_card
from topogen_torch._layout import STORED, checked_pattern, derived_index, refuse_wide, stored_index, to_pattern

__all__ = ["Patterned", "resize"]

_KEYS = ("values", "bias", *STORED)


class Patterned(nn.Module):
    """Base of the layers that store what their pattern has and no more.

    The *stored pattern* has one entry for each *unit* of weights: one connection, one block, or one convolution
    kernel. `values` holds the units in value ordering, row-major over (input, output) of the stored pattern.

    A subclass calls `_allocate` once in its constructor, and overrides `_derived` where its kernels read other index
    buffers than those that `_layout.derived_index` makes.

    Attributes
    ----------
    values : Parameter, shape (units, *unit)
        The same object for the layer's whole life.
    bias : Parameter or None
    indptr, indices, sizes, pattern_hash : Tensor
        The stored pattern, in the state dict; see `topogen_torch._layout`.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    indptr: Tensor
    indices: Tensor
    sizes: Tensor
    pattern_hash: Tensor

    # called in the backward pass, with inputs and gradients of outputs, by modules that read a layer's weights only
    _observer: Callable[[Tensor, Tensor], None] | None = None

    def _allocate(
        self,
        stored: sp.csr_array,
        *,
        unit: tuple[int, ...] = (),
        bias: int | None,
        dtype: torch.dtype | None,
        device: Any,
    ) -> None:
        """Make the parameters, uninitialised, and the index buffers of a canonical stored pattern.

        `unit` is the shape of one unit of weights; `bias` the number of biases, None for no bias at all.
        """
        owner = type(self).__name__
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            checks.refuse("dtype", owner, "a torch float type", dtype)
        refuse_wide(*stored.shape, stored.nnz, owner)
        self._stored_sizes: tuple[int, int] = stored.shape
        self._unit = unit
        self.values = nn.Parameter(torch.empty(stored.nnz, *unit, dtype=dtype, device=device))
        biases = None if bias is None else nn.Parameter(torch.empty(bias, dtype=dtype, device=device))
        self.register_parameter("bias", biases)
        self._derived_names: tuple[str, ...] = ()
        self._install(*self._buffers_of(stored))

    def _derived(self, stored: sp.csr_array) -> dict[str, Tensor]:
        """Return the buffers, made from the stored pattern, that the kernels read beside it; not in the state dict.

        They may depend on whether the values are on a card: when the layer moves there or back, they are made anew.
        """
        return derived_index(stored)

    def _placed(self, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the buffers where the values are; on ``meta`` they stay where they hold data."""
        if self.values.is_meta:
            return buffers
        return {name: buffer.to(self.values.device) for name, buffer in buffers.items()}

    @property
    def nnz(self) -> int:
        """Stored connections."""
        return self.indices.numel() * math.prod(self._unit)

    @property
    def density(self) -> float:
        """Stored connections / possible connections."""
        return self.indices.numel() / math.prod(self._stored_sizes)

    @property
    def _stored_pattern(self) -> sp.csr_array:
        """A copy of the stored pattern, canonical, bool."""
        return to_pattern(self.indptr, self.indices, self._stored_sizes[1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move as torch does, but never lose the indices: ``to_empty`` and ``to("meta")`` would."""
        indices: dict[str, Tensor] = {name: getattr(self, name) for name in (*STORED, *self._derived_names)}
        was_on_card = on_card(self.values.device)
        super()._apply(fn, recurse)
        self._buffers.update(self._placed(indices))
        if on_card(self.values.device) != was_on_card:  # whose kernels read other buffers
            self._install(*self._buffers_of(self._stored_pattern))
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Check the whole state before anything is changed; it is loaded whole or, where it has no key, not at all."""
        state = {name: state_dict[prefix + name] for name in _KEYS if prefix + name in state_dict}
        if not state:
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )  # fmt: skip
            return
        try:
            self._check_keys(state)
            stored = checked_pattern(state, self._stored_sizes, type(self).__name__)
            _check_numbers("values", state["values"], (stored.nnz, *self._unit))
            if stored.nnz != self.values.shape[0] and hasattr(self.values, "device_mesh"):  # a DTensor, as FSDP makes
                raise SpecError(
                    f"a sharded layer keeps its number of entries, {self.values.shape[0]}: load before sharding. "
                    f"Got {stored.nnz}."
                )
            if self.bias is not None:
                _check_numbers("bias", state["bias"], tuple(self.bias.shape))
        except SpecError as error:
            error_msgs.append(f"The state of {type(self).__name__} '{prefix.rstrip('.')}' is refused: {error}")
            return
        parameters = {name: parameter for name, parameter in self._parameters.items() if parameter is not None}
        self._adopt(stored)
        state_dict = {**state_dict, f"{prefix}pattern_hash": self.pattern_hash}  # whatever version the state has
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )  # fmt: skip
        if local_metadata.get("assign_to_params_buffers", False):
            self._adopt(stored)  # buffers of our own, not the caller's
            for name, parameter in parameters.items():
                self._keep(name, parameter)

    def _check_keys(self, state: Mapping[str, Any]) -> None:
        wanted = {name for name in _KEYS if name != "bias" or self.bias is not None}
        for name in _KEYS:
            if name in wanted and name not in state:
                raise SpecError(f"it must be whole. Got no '{name}'.")
            if name in state and name not in wanted:
                raise SpecError(f"it must have no '{name}', as the layer has none. Got one.")

    def _adopt(self, stored: sp.csr_array) -> None:
        """Take another pattern of the same sizes.

        Where it has another number of entries, `values` is resized in place, uninitialised, and its gradient dropped.
        """
        if stored.nnz != self.values.shape[0]:
            resize(self.values, self.values.detach().new_empty(stored.nnz, *self._unit))
        self._install(*self._buffers_of(stored))

    def _buffers_of(self, stored: sp.csr_array) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the buffers that store a pattern and those derived from it; the layer is left as it is."""
        return self._stored_buffers(stored.copy()), self._derived_buffers(stored)

    def _stored_buffers(self, stored: sp.csr_array) -> dict[str, Tensor]:
        """Return the buffers of the state dict, which take over the pattern's memory."""
        return self._placed(stored_index(stored, type(self).__name__))

    def _derived_buffers(self, stored: sp.csr_array) -> dict[str, Tensor]:
        return self._placed(self._derived(stored))

    def _install(self, index: dict[str, Tensor], derived: dict[str, Tensor]) -> None:
        """Make `_buffers_of` a pattern the layer's own; nothing here can fail."""
        for name in self._derived_names:
            del self._buffers[name]
        for name, buffer in index.items():
            self.register_buffer(name, buffer)
        for name, buffer in derived.items():
            self.register_buffer(name, buffer, persistent=False)
        self._derived_names = tuple(derived)

    def _keep(self, name: str, parameter: nn.Parameter) -> None:
        """After ``assign=True``: give the old Parameter the assigned data. One on ``meta`` cannot take any."""
        assigned = self._parameters[name]
        if assigned is None or assigned is parameter or parameter.is_meta != assigned.is_meta:
            return
        if (parameter.dtype, parameter.device) != (assigned.dtype, assigned.device):
            parameter.grad = None
        parameter.data = assigned.data
        self._parameters[name] = parameter


def resize(parameter: nn.Parameter, data: Tensor) -> None:
    """Give a parameter data of another shape, and no gradient.

    As long as anything holds on to an earlier graph, the last loss say, autograd knows the parameter by the shape that
    it had; it looks again where the dtype changes.
    """
    parameter.grad = None
    parameter.data = data.new_empty(0, dtype=torch.float32 if data.dtype == torch.float64 else torch.float64)
    parameter.data = data


def _check_numbers(name: str, tensor: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tuple(tensor.shape) != shape:
        got = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise SpecError(f"'{name}' must be a float tensor of shape {shape}. Got {got}.")
