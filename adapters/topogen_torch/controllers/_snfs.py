"""Sparse networks from scratch: momentum says how many connections a layer gets, and which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from topogen import checks
from topogen_torch.controllers._base import Number
from topogen_torch.controllers._dynamic import Annealed
from topogen_torch.controllers.growth import Rule, by_gradient
from topogen_torch.controllers.redistribution import Redistribution, mean_momentum

__all__ = ["SNFS"]


class SNFS(Annealed):
    r"""Sparse momentum: drop the smallest weights, regrow where momentum is large (Dettmers and Zettlemoyer 2019).

    At every update before `end_step`, at step t, each layer of n connections drops its
    :math:`\lfloor f(t) n \rfloor` smallest absolute weights, :math:`f(t) = \frac{\alpha}{2}(1 + \cos(\pi t / T))` with
    :math:`\alpha` = `drop_fraction` and :math:`T` = `end_step`. As many connections grow in all layers together: a
    layer gets its share in proportion to the mean absolute momentum of the weights that it had, and takes the empty
    places where the running gradient :math:`\sum_a \mu^a g_{t-a}` is largest, with weight 0.

    Parameters
    ----------
    model, optimizer
        See `Controller`. The optimizer's momentum shares the growth out.
    end_step : int >= 1
        Updates stop there; the paper's choice is the end of training.
    update_every : int >= 1
        The layers change at steps which it divides; the paper's is one epoch.
    drop_fraction : float in [0, 1), or a schedule
        :math:`\alpha`; a schedule replaces f(t) as it is.
    window : int >= 1
        Steps a of the sum over which the running gradient goes: this step and those before it.
    momentum : float in [0, 1]
        :math:`\mu`.
    rng : int, numpy.random.SeedSequence or Generator, optional
        Only for a rule of growth that draws.
    grow : callable
        A rule of growth; see `topogen_torch.controllers.growth`.
    redistribute : callable or None
        A rule that moves connections between layers; see `topogen_torch.controllers.redistribution`. With None every
        layer regains what it lost.
    layers, groups
        See `Controller`.

    Raises
    ------
    SpecError
        If a parameter is none of these. At an update: if the optimizer keeps no momentum.

    Notes
    -----
    The momentum of a connection that does not exist is a number for every place of the dense matrix, at every step: the
    authors keep that matrix. Here it is cut off after `window` steps, of which inputs and output gradients are kept
    instead: memory for `window` batches, no dense matrix, and `window` products of the dense weight gradient an update,
    computed a chunk at a time. With :math:`\mu = 0.9` a window of 1, the default, is the gradient of the step of the
    update, as in `RigL`; 22 steps have 90 % of the weight of the whole sum. Three things more differ from the authors'
    program: with Adam it divides the momentum by the root of the second moment, which is done here to share the growth
    out but not to choose places; its layers are filled to 99 % at most, here to 100 %; and it rounds up where here the
    total is exact, by largest remainders.

    Connections move only between layers whose units have as many weights: blocks among blocks of one size, kernels
    among kernels. The total in each such group is exact after every step. A layer's number of connections changes, and
    with it the size of its `values`: under DistributedDataParallel wrap the model anew after every `step` that returns
    True.

    References
    ----------
    T. Dettmers and L. Zettlemoyer, "Sparse networks from scratch: faster training without losing performance",
    arXiv:1907.04840, section 3 and algorithm 1.

    Examples
    --------
    >>> import torch, topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.ErdosRenyi(sizes=[40, 30, 10], density=0.2), rng=0))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> ctl = tt.SNFS(model, optimizer, end_step=40, update_every=10)
    >>> for step in range(40):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(64, 40)).square().sum(1).mean().backward()
    ...     optimizer.step()
    ...     changed = ctl.step()
    >>> model[0].nnz + model[2].nnz, model[0].nnz == 240
    (300, False)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        *,
        end_step: int,
        update_every: int,
        drop_fraction: Number = 0.5,
        window: int = 1,
        momentum: float = 0.9,
        rng: Any = None,
        grow: Rule = by_gradient,
        redistribute: Redistribution | None = mean_momentum,
        layers: str | Sequence[str] = "*",
        groups: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        checks.integer(window, "window", "SNFS", low=1)
        checks.real(momentum, "momentum", "SNFS", high=1.0)
        super().__init__(
            model, optimizer, end_step=end_step, grow=grow, update_every=update_every, redistribute=redistribute,
            window=window, decay=momentum, rng=rng, layers=layers, groups=groups,
            settings={"drop_fraction": drop_fraction, "window": window, "momentum": momentum},
        )  # fmt: skip
