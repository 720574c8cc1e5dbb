"""Genes and the terms of an ontology as a network that mirrors it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, cast

import numpy as np

from topogen import checks
from topogen._topology import Topology
from topogen.errors import SpecError
from topogen.from_data._layering import Graph, Layering, chained, depths, with_sinks_last

__all__ = ["from_ontology", "ontology_layering"]


def from_ontology(
    parents: Mapping[Any, Iterable[Any]],
    annotations: Mapping[Any, Iterable[Any]],
) -> Topology:
    """Return the topology of an ontology: genes in, each term fed by its genes and its children, roots out.

    Parameters
    ----------
    parents, annotations : mapping
        As for `ontology_layering`, which also tells which neuron is which gene or term.

    Returns
    -------
    Topology
        Without spec and seed; `Topology.relays` are the neurons that carry edges over layers.

    Raises
    ------
    SpecError
        As for `ontology_layering`.

    Examples
    --------
    >>> import topogen as tg
    >>> parents = {"cell": [], "nucleus": ["cell"], "membrane": ["cell"], "pore": ["nucleus", "membrane"]}
    >>> tg.from_ontology(parents, {"NUP1": ["pore"], "PMA1": ["membrane"]})
    Topology(sizes=(2, 2, 2, 1), n_relays=1)
    """
    return _layering(parents, annotations, "from_ontology").topology


def ontology_layering(
    parents: Mapping[Any, Iterable[Any]],
    annotations: Mapping[Any, Iterable[Any]],
) -> Layering:
    """Place genes and the terms of an ontology in layers, and relays where an edge skips some.

    Parameters
    ----------
    parents : mapping of term to iterable of terms
        The terms that each term is a kind of, as the Gene Ontology's ``is_a`` tells; none for a root. Every term is a
        key.
    annotations : mapping of gene to iterable of terms
        The terms that each gene is annotated with directly.

    Returns
    -------
    Layering
        ``(topology, places, names)``. The inputs, ``names[0]``, are all genes in the order of `annotations`; a gene
        without terms leads nowhere. The outputs, ``names[-1]``, are the roots that some gene leads to.

    Raises
    ------
    SpecError
        If a parent or a term of an annotation is no key of `parents` (both are named), `parents` has a cycle (which is
        named), a name is both a gene's and a term's, or no gene has a term.

    Notes
    -----
    Edges run from a gene to its terms and from a term to its parents, each once. A term is in layer k if the longest
    path to it from a gene has k edges; roots are in the last layer. Edges that skip layers go through relays, one
    shared line for each gene or term, as `layering` says. Terms that neither they nor their descendants have a gene are
    left out: nothing would ever flow through them. Within a layer, terms keep the order of `parents`.

    Linear in the number of genes, terms, edges and relays, but for sorting.

    References
    ----------
    J. Ma et al., "Using deep learning to model the hierarchical structure and function of a cell", Nature Methods 15,
    2018: networks that mirror an ontology, with a group of neurons for each term.

    Examples
    --------
    >>> import topogen as tg
    >>> parents = {"cell": [], "nucleus": ["cell"], "membrane": ["cell"], "pore": ["nucleus", "membrane"]}
    >>> found = tg.ontology_layering(parents, {"NUP1": ["pore"], "PMA1": ["membrane"]})
    >>> found.names
    (('NUP1', 'PMA1'), ('pore', 'PMA1'), ('nucleus', 'membrane'), ('cell',))
    >>> found.places["membrane"], found.topology.relays[1].tolist()
    ((2, 1), [1])
    """
    return _layering(parents, annotations, "ontology_layering")


def _layering(parents: Any, annotations: Any, owner: str) -> Layering:
    above = _rows(parents, "parents", owner)
    terms_of = _rows(annotations, "annotations", owner)
    both = next((gene for gene in terms_of if gene in above), None)
    if both is not None:
        raise SpecError(
            f"The 'annotations' parameter of {owner} must have names of genes that no term has. Got {both!r}."
        )
    _check_known(above, above, "parents", owner)
    _check_known(terms_of, above, "annotations", owner)
    depths(_graph(above, owner))  # whatever genes there are, a cycle is refused
    reached = _reached(terms_of, above)
    if not reached:
        raise SpecError(
            f"The 'annotations' parameter of {owner} must give at least one gene a term. Got {len(terms_of)} genes "
            "and no terms."
        )
    graph = _graph({**terms_of, **{term: row for term, row in above.items() if term in reached}}, owner)
    layer = with_sinks_last(graph, depths(graph))
    return chained(graph, layer, np.zeros(layer.size, np.bool_))


def _rows(given: Any, name: str, owner: str) -> dict[Hashable, tuple[Hashable, ...]]:
    """Return a mapping of names to iterables of names as one to tuples, each name once."""
    checks.instance(given, name, owner, Mapping)
    rows: dict[Hashable, tuple[Hashable, ...]] = {}
    for key, row in cast("Mapping[Hashable, Any]", given).items():
        if isinstance(row, (str, bytes)) or not isinstance(row, Iterable):
            checks.refuse(f"{name}[{key!r}]", owner, "an iterable of terms", row)
        try:
            rows[key] = tuple(dict.fromkeys(cast("Iterable[Hashable]", row)))
        except TypeError:
            checks.refuse(f"{name}[{key!r}]", owner, "an iterable of hashable terms", cast(object, row))
    return rows


def _check_known(
    rows: Mapping[Hashable, tuple[Hashable, ...]], known: Mapping[Hashable, Any], name: str, owner: str
) -> None:
    unknown = [(term, key) for key, row in rows.items() for term in row if term not in known]
    if unknown:
        term, key = unknown[0]
        more = f", and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise SpecError(
            f"The '{name}' parameter of {owner} must name terms that are keys of 'parents'. "
            f"Got {term!r} at {key!r}{more}."
        )


def _graph(rows: Mapping[Hashable, tuple[Hashable, ...]], owner: str) -> Graph:
    nodes = list(rows)
    number = {node: i for i, node in enumerate(nodes)}
    tails = np.repeat(np.arange(len(nodes)), [len(row) for row in rows.values()])
    heads = np.array([number[term] for row in rows.values() for term in row], np.int64)
    return Graph(nodes, tails, heads, "parents", owner)


def _reached(
    terms_of: Mapping[Hashable, tuple[Hashable, ...]], above: Mapping[Hashable, tuple[Hashable, ...]]
) -> set[Hashable]:
    """Return the terms that some gene leads to."""
    reached: set[Hashable] = set()
    waiting = [term for row in terms_of.values() for term in row]
    while waiting:
        term = waiting.pop()
        if term not in reached:
            reached.add(term)
            waiting.extend(above[term])
    return reached
