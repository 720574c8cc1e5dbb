"""From a spec to a Topology."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from topogen import checks
from topogen._parallel import each
from topogen._spec import AbstractSpec, as_seed
from topogen._topology import LazyLayers, Topology
from topogen.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse as sp

__all__ = ["generate"]


def generate(spec: AbstractSpec, *, rng: Any = None, lazy: bool = False) -> Topology:
    """Build the topology that `spec` describes.

    Parameters
    ----------
    spec : AbstractSpec
        One of topogen's families, or your own.
    rng : int, numpy.random.SeedSequence or numpy.random.Generator, optional
        Required by random families and ignored by the others. The result depends on it and on nothing else: the same
        int gives the same connections wherever they are built. From a Generator 128 bits are drawn, once.
    lazy : bool
        Build layer k on every access to ``net.layers[k]`` and keep none, for networks larger than memory.

    Returns
    -------
    Topology
        Layers in canonical csr form, dtype bool, rows = inputs, columns = outputs.

    Raises
    ------
    SpecError
        If `spec` is no spec, a random family comes without `rng`, or the result would not fit in memory (with the
        number of bytes, before anything is allocated).
    GenerationError
        If a random construction does not succeed within its bounded number of tries.

    Notes
    -----
    Layers are built one after the other, or several at once inside ``with joblib.parallel_config(...)``, on any of
    joblib's backends, Dask's included; the connections are the same. On one machine ``backend="threading"`` spares
    sending layers from one process to another. It pays for many layers; a few of millions of connections wait for the
    memory rather than for a core. With ``lazy=True`` a layer is built when it is asked for, alone.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1]))
    >>> net.sizes, net.nnz, net.density
    ((800, 300, 100), 27000, 0.1)

    >>> import joblib
    >>> with joblib.parallel_config(backend="threading", n_jobs=2):
    ...     net == tg.generate(net.spec)
    True
    """
    checks.instance(spec, "spec", "generate", AbstractSpec, "an")
    seed = as_seed(rng)
    if seed is None and spec.is_random:
        raise SpecError(
            f"The 'rng' parameter of generate must be given for {type(spec).__name__}, which is random: an int, a "
            f"SeedSequence or a Generator. Got None; rng=0 would do."
        )
    needed = spec.layer_bytes()
    layers = LazyLayers(spec.sizes, _Builder(spec, seed, needed if lazy else None))
    net = Topology(layers, spec=spec, seed=seed)
    if not lazy:
        # all that is kept, as far as the claims tell, and the largest layer that is built on the way to it
        builds_more = type(spec).layer_bytes is not AbstractSpec.layer_bytes
        kept = AbstractSpec.layer_bytes(spec) if builds_more else needed
        checks.fits_in_memory(max(sum(kept), *needed), "spec", "generate")
        net.layers = each(layers.__getitem__, range(len(layers)))  # each one canonical and of the right shape
    return net


class _Builder:
    """Builds layer k of a spec; unlike a closure it can be sent to another process.

    `needed` are the bytes of each layer, where it is to look whether they are there.
    """

    def __init__(self, spec: AbstractSpec, seed: np.random.SeedSequence | None, needed: tuple[int, ...] | None) -> None:
        self._spec, self._seed, self._needed = spec, seed, needed

    def __call__(self, k: int) -> sp.csr_array:
        if self._needed is not None:
            checks.fits_in_memory(self._needed[k], "spec", f"generate (layer {k})")
        return self._spec.layer(k, self._seed)
