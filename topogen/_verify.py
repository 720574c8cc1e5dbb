"""From a topology to a Report: every claim measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from topogen import checks
from topogen._claims import DEFAULT_MEASURES, Claim, Measure, Report, ReportRow
from topogen._parallel import each
from topogen._topology import Topology, as_topology

__all__ = ["verify", "verify_watched"]


def verify(x: Any, *, claims: Sequence[Claim] | None = None) -> Report:
    """Measure what a topology promises, and what it is besides.

    Parameters
    ----------
    x : Topology, sequence of matrices, or one matrix
        Judged by its connections alone: matrices that topogen did not make, pruned networks included, are measured
        the same way.
    claims : sequence of Claim, optional
        What to check. By default the claims of ``x.spec``; nothing where there is no spec.

    Returns
    -------
    Report
        One row a claim, then one row for each default measure that no claim is about. A broken claim is a row whose
        ``holds`` is False, never an exception; ``report.holds`` is None when nothing was promised.

    Raises
    ------
    SpecError
        If `x` is no topology, or `claims` holds anything but Claims.

    Notes
    -----
    Exact: no sampling, and no floating point but for singular values, whose claims state a tolerance. Reachability
    takes 64 inputs a machine word, path counts are integers of unbounded size and cost up to n_0 * nnz additions, far
    less for networks with repeated rows.

    Measures are taken one after the other, or several at once inside ``with joblib.parallel_config(...)``; with
    ``backend="threading"`` they share the layers. The slowest of them bounds what that gains: about two times on two
    cores where rows repeat, nothing where path counts take all the time.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.RadixNet(systems=[[2, 2, 2]]))
    >>> tg.verify(net).holds
    True
    >>> tg.verify(net.layers[:2]).holds is None
    True
    """
    return verify_watched(x, claims, lambda name: None)


def verify_watched(x: Any, claims: Sequence[Claim] | None, watch: Callable[[str], None]) -> Report:
    """Return what `verify` does; `watch` is told the name of each measure before it is taken."""
    topology = as_topology(x)
    if claims is None:
        promised = () if topology.spec is None else topology.spec.claims()
    else:
        promised = tuple(
            checks.instance(claim, f"claims[{i}]", "verify", Claim)
            for i, claim in enumerate(checks.row(claims, "claims", "verify", "a sequence of Claims"))
        )
    claimed = {claim.measure for claim in promised}
    others = [measure for measure in DEFAULT_MEASURES if measure not in claimed]
    measured = _Measured(topology, [*(claim.measure for claim in promised), *others], watch)
    rows = [
        ReportRow(
            name=claim.name,
            promised=claim.bound,
            measured=measured(claim.measure),
            holds=claim.is_kept_by(measured(claim.measure)),
            relation=claim.relation,
            source=claim.source,
            probability=claim.probability,
            tolerance=claim.tolerance,
        )
        for claim in promised
    ]
    rows += [ReportRow(measure.name, None, measured(measure), None) for measure in others]
    return Report(tuple(rows))


class _Measured:
    """What was measured of one topology; measures that share a computation share its result."""

    def __init__(self, topology: Topology, measures: Sequence[Measure], watch: Callable[[str], None]) -> None:
        self._topology = topology
        self._watch = watch
        distinct: dict[Callable[[Topology], Any], Measure] = {}
        for measure in measures:
            distinct.setdefault(measure.of, measure)
        self._values = dict(zip(distinct, each(self._take, list(distinct.values())), strict=True))

    def _take(self, measure: Measure) -> Any:
        self._watch(measure.name)
        return measure.of(self._topology)

    def __call__(self, measure: Measure) -> Any:
        return measure.read(self._values[measure.of])
