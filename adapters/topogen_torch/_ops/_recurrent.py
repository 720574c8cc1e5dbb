"""LSTM and GRU over a whole sequence: one autograd function each, with sparse products from step to step.

Rows of a sequence lie step after step, as in a packed sequence: step t is the run of `rows` rows that starts at
`start`, sample b of the batch its b-th row. Samples are sorted by length, so that a step with fewer rows is a step
without the last samples: going forward they have ended, going backward they have not begun, and in both cases their
state waits.

Only what really is sequential is done step by step. The backward pass takes the derivatives of all gates at once, so
that a step is left with the product that carries the gradient to the step before; where steps are narrow, the gradient
of the weights is one product over all of them.

Legend of shapes: R rows of all steps, B batch, G hidden_size, P size of the output, equal to G without a projection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from topogen_torch._ops._dense import announce_fallback, to_dense
from topogen_torch._ops._linear import KERNEL_DEVICES, Index

__all__ = ["Step", "Weights", "sparse_gru", "sparse_lstm"]

Step = tuple[int, int]  # first row, number of rows
Observer = Callable[[Tensor, Tensor], None]

_forward = torch.ops.topogen.sparse_linear.default
_backward = torch.ops.topogen.sparse_linear_backward.default

# Rows in a step from which on its gradients are computed together. Measured on one core of a Zen 5 EPYC, 512 to 1536 at
# 10 %: against two products, together takes 1.9 times as long with 1 row, as long with 8, 0.6 times with 32.
_TOGETHER = 16


class Weights(NamedTuple):
    """One sparse matrix, (in, out), of a recurrent layer."""

    values: Tensor
    bias: Tensor | None
    pattern: Index
    out_features: int
    observer: Observer | None = None  # is told in the backward pass what was multiplied, and the product's gradient

    def usable(self, dtype: torch.dtype) -> Weights:
        """Return the weights in `dtype`; as a full matrix where there is no kernel, which is said once."""
        values = self.values.to(dtype)
        sizes = self.pattern.indptr.shape[0] - 1, self.out_features
        if values.device.type not in KERNEL_DEVICES and values.shape[0] != sizes[0] * sizes[1]:
            announce_fallback(values.device, *sizes, values.itemsize)
            values = to_dense(values, self.pattern.indptr, self.pattern.indices, self.out_features).flatten()
        return self._replace(values=values, bias=None if self.bias is None else self.bias.to(dtype))


def sparse_lstm(
    steps: Sequence[Step], gates: Tensor, state: Sequence[Tensor], hidden: Weights, projection: Weights | None = None
) -> tuple[Tensor, ...]:
    """Run an LSTM over a sequence.

    Parameters
    ----------
    steps : sequence of (start, rows)
        In the order in which they are taken.
    gates : Tensor, shape (R, 4 G)
        The input's part of the gates, biases included; the order is torch's: input, forget, cell, output.
    state : pair of Tensor, shapes (B, P) and (B, G)
        h and c before the first step.
    hidden : Weights
        From P to 4 G.
    projection : Weights, optional
        From G to P, without bias.

    Returns
    -------
    outputs, h, c : Tensor, shapes (R, P), (B, P) and (B, G)
    """
    index = hidden.pattern if projection is None else (*hidden.pattern, *projection.pattern)
    values = None if projection is None else projection.values
    observers = (hidden.observer, None if projection is None else projection.observer)
    return _LSTM.apply(tuple(steps), observers, gates, *state, hidden.values, hidden.bias, values, *index)


def sparse_gru(steps: Sequence[Step], gates: Tensor, state: Sequence[Tensor], hidden: Weights) -> tuple[Tensor, ...]:
    """Run a GRU over a sequence.

    Parameters
    ----------
    steps, hidden
        As for `sparse_lstm`, with 3 G gates.
    gates : Tensor, shape (R, 3 G)
        The input's part, biases included; the order is torch's: reset, update, new.
    state : sequence of one Tensor, shape (B, G)

    Returns
    -------
    outputs, h : Tensor, shapes (R, G) and (B, G)
    """
    return _GRU.apply(tuple(steps), hidden.observer, gates, *state, hidden.values, hidden.bias, *hidden.pattern)


class _LSTM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, steps: tuple[Step, ...], observers: tuple[Observer | None, Observer | None], gates: Tensor,
        h: Tensor, c: Tensor, values: Tensor, bias: Tensor | None, projection: Tensor | None, *index: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        size = c.shape[1]
        acts = gates.clone()  # becomes the activated gates
        outputs, before_h = gates.new_empty(len(gates), h.shape[1]), gates.new_empty(len(gates), h.shape[1])
        before_c, tanh_c = gates.new_empty(len(gates), size), gates.new_empty(len(gates), size)
        with _full_precision(gates):
            for start, rows in steps:
                now = slice(start, start + rows)
                before_h[now], before_c[now] = h[:rows], c[:rows]
                act = acts[now]
                act += _times(before_h[now], values, bias, index[:5], 4 * size)
                act[:, : 2 * size].sigmoid_()
                act[:, 2 * size : 3 * size].tanh_()
                act[:, 3 * size :].sigmoid_()
                entry, keep, cell, out = act.split(size, 1)
                new_c = torch.addcmul(entry * cell, keep, before_c[now])
                tanh_c[now] = new_c.tanh()
                new_h = out * tanh_c[now]
                if projection is not None:
                    new_h = _times(new_h, projection, None, index[5:], h.shape[1])
                outputs[now] = new_h
                h, c = _replaced(h, new_h), _replaced(c, new_c)
        ctx.save_for_backward(acts, before_h, before_c, tanh_c, values, projection, *index)
        ctx.steps, ctx.observers, ctx.has_bias = steps, observers, bias is not None
        return outputs, h, c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, dh: Tensor, dc: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        acts, before_h, before_c, tanh_c, values, projection, *index = ctx.saved_tensors
        entry, keep, cell, out = acts.split(tanh_c.shape[1], 1)
        to_cell = out * (1 - tanh_c * tanh_c)  # the derivative of the output by the cell state
        # those of the cell state by the first three gates, and of the output by the last
        d_gates = torch.stack(
            [
                cell * entry * (1 - entry),
                before_c * keep * (1 - keep),
                entry * (1 - cell * cell),
                tanh_c * out * (1 - out),
            ],
            1,
        )  # (R, 4, G); the gradients of the gates take their place
        d_projected = None if projection is None else torch.empty_like(d_outputs)
        sums = _sums(values, before_h.shape[1], acts.shape[1], len(acts) / len(ctx.steps))
        with _full_precision(acts):
            for start, rows in reversed(ctx.steps):
                now = slice(start, start + rows)
                d = dh[:rows] + d_outputs[now]
                if projection is not None:
                    assert d_projected is not None
                    d_projected[now] = d
                    d = _times_transposed(d, tanh_c[now], projection, index[5:], None)
                d_cell = torch.addcmul(dc[:rows], d, to_cell[now])
                d_gates[now] *= torch.stack([d_cell, d_cell, d_cell, d], 1)
                dc = _replaced(dc, d_cell * keep[now])
                dh = _replaced(dh, _times_transposed(d_gates[now].flatten(1), before_h[now], values, index, sums))
            d_gates = d_gates.flatten(1)
            d_values, d_bias = _weight_gradients(d_gates, before_h, values, index, ctx.has_bias, sums)
            d_projection = None
            if projection is not None:
                assert d_projected is not None
                d_projection, _ = _weight_gradients(d_projected, out * tanh_c, projection, index[5:], False, None)
        hidden, projected = ctx.observers
        if hidden is not None:
            hidden(before_h, d_gates)
        if projected is not None:
            assert d_projected is not None
            projected(out * tanh_c, d_projected)
        return (None, None, d_gates, dh, dc, d_values, d_bias, d_projection, *(None for _ in index))


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, steps: tuple[Step, ...], observer: Observer | None, gates: Tensor, h: Tensor, values: Tensor,
        bias: Tensor | None, *index: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        size = h.shape[1]
        acts = gates.clone()  # becomes the activated gates
        outputs, before, hidden_new = (gates.new_empty(len(gates), size) for _ in range(3))
        with _full_precision(gates):
            for start, rows in steps:
                now = slice(start, start + rows)
                before[now] = h[:rows]
                hidden = _times(before[now], values, bias, index, 3 * size)
                hidden_new[now] = hidden[:, 2 * size :]
                act = acts[now]
                act[:, : 2 * size] += hidden[:, : 2 * size]
                act[:, : 2 * size].sigmoid_()
                new = act[:, 2 * size :].addcmul_(act[:, :size], hidden_new[now]).tanh_()
                new_h = torch.lerp(new, before[now], act[:, size : 2 * size])
                outputs[now] = new_h
                h = _replaced(h, new_h)
        ctx.save_for_backward(acts, before, hidden_new, values, *index)
        ctx.steps, ctx.observer, ctx.has_bias = steps, observer, bias is not None
        return outputs, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        acts, before, hidden_new, values, *index = ctx.saved_tensors
        reset, update, new = acts.split(before.shape[1], 1)
        by_new = (1 - update) * (1 - new * new)
        # the derivatives of the output by the hidden state's part of each gate
        d_hidden = torch.stack(
            [by_new * hidden_new * reset * (1 - reset), (before - new) * update * (1 - update), by_new * reset], 1
        )  # (R, 3, G); the gradients of the hidden state's part take their place
        d_all = torch.empty_like(before)
        sums = _sums(values, before.shape[1], acts.shape[1], len(acts) / len(ctx.steps))
        with _full_precision(acts):
            for start, rows in reversed(ctx.steps):
                now = slice(start, start + rows)
                d = dh[:rows] + d_outputs[now]
                d_all[now] = d
                d_hidden[now] *= d[:, None]
                carried = _times_transposed(d_hidden[now].flatten(1), before[now], values, index, sums)
                dh = _replaced(dh, torch.addcmul(carried, d, update[now]))
            d_values, d_bias = _weight_gradients(d_hidden.flatten(1), before, values, index, ctx.has_bias, sums)
        if ctx.observer is not None:
            ctx.observer(before, d_hidden.flatten(1).clone())
        d_hidden[:, 2] = d_all * by_new  # the input's part of the new gate is not multiplied by the reset gate
        return (None, None, d_hidden.flatten(1), dh, d_values, d_bias, *(None for _ in index))


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Return a context in which autocast, which would round dense products, is off."""
    return torch.autocast(tensor.device.type, enabled=False)


def _replaced(state: Tensor, new: Tensor) -> Tensor:
    """Return `state` with its first rows replaced by those of `new`."""
    return new if new.shape[0] == state.shape[0] else torch.cat([new, state[new.shape[0] :]])


def _times(x: Tensor, values: Tensor, bias: Tensor | None, index: Sequence[Tensor], n_out: int) -> Tensor:
    """Return ``x @ W + bias``."""
    if values.shape[0] == x.shape[1] * n_out:
        weight = values.view(x.shape[1], n_out)
        return x @ weight if bias is None else torch.addmm(bias, x, weight)
    return _forward(x, values, bias, *index[2:5])


def _sums(values: Tensor, n_in: int, n_out: int, rows: float) -> list[Tensor] | None:
    """Return zeros to which each step adds its gradients of values and bias, or None where one product does it better.

    One pass of the backward kernel yields the gradients of input and weights together and loads once what both need.
    With few rows in a step the traffic of the weights decides instead, and their gradient is left for the end.
    """
    if rows < _TOGETHER or values.shape[0] == n_in * n_out:
        return None
    return [torch.zeros_like(values), values.new_zeros(n_out)]


def _times_transposed(
    dy: Tensor, x: Tensor, values: Tensor, index: Sequence[Tensor], sums: list[Tensor] | None
) -> Tensor:
    """Return ``dy @ W.T``, and add the gradients of the weights, for x times W, to `sums`."""
    if values.shape[0] == x.shape[1] * dy.shape[1]:
        return dy @ values.view(x.shape[1], dy.shape[1]).t()
    dx, *found = _backward(dy, x, values, *index[:2], [True, sums is not None, sums is not None])
    for total, part in zip(sums or (), found, strict=False):
        total.add_(part)
    return dx


def _weight_gradients(
    dy: Tensor, x: Tensor, values: Tensor, index: Sequence[Tensor], has_bias: bool, sums: list[Tensor] | None
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of values and bias over all steps, which are in `sums` or still to be computed."""
    if sums is not None:
        return sums[0], sums[1] if has_bias else None
    if values.shape[0] == x.shape[1] * dy.shape[1]:
        return (x.t() @ dy).flatten(), dy.sum(0) if has_bias else None
    _, d_values, d_bias = _backward(dy, x, values, *index[:2], [False, True, has_bias])
    return d_values, d_bias if has_bias else None
