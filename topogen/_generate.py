"""From a spec to a Topology."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from topogen import checks
from topogen._spec import AbstractSpec, as_seed
from topogen._topology import LazyLayers, Topology
from topogen.errors import SpecError

if TYPE_CHECKING:
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

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1]))
    >>> net.sizes, net.nnz, net.density
    ((800, 300, 100), 27000, 0.1)
    """
    checks.instance(spec, "spec", "generate", AbstractSpec, "an")
    seed = as_seed(rng)
    if seed is None and spec.is_random:
        raise SpecError(
            f"The 'rng' parameter of generate must be given for {type(spec).__name__}, which is random: an int, a "
            f"SeedSequence or a Generator. Got None; rng=0 would do."
        )
    needed = spec.layer_bytes()

    def build(k: int) -> sp.csr_array:
        checks.fits_in_memory(needed[k], "spec", f"generate (layer {k})")
        return spec.layer(k, seed)

    layers = LazyLayers(spec.sizes, build)
    if lazy:
        return Topology(layers, spec=spec, seed=seed)
    # all that is kept, as far as the claims tell, and the largest layer that is built on the way to it
    checks.fits_in_memory(max(sum(AbstractSpec.layer_bytes(spec)), *needed), "spec", "generate")
    return Topology(list(layers), spec=spec, seed=seed)
