"""Numbers of a topology, measured on its layers and on nothing else.

Every function here takes `x`, which is a `topogen.Topology`, a sequence of matrices whose widths match, or one matrix
(scipy sparse, numpy, or nested lists). A connection is an entry that is not zero; rows are inputs, columns are outputs.
`x` is never changed, and it need not be topogen's: pruned, irregular and half-empty networks are measured alike.
"""

from topogen.measures._connectivity import (
    dead_neurons,
    is_path_connected,
    n_components,
    path_connected_depth,
    reachability,
)
from topogen.measures._degrees import Degrees, Range, connections, degrees, density, exact_density, fan_in, fan_out
from topogen.measures._effective import effective_topology
from topogen.measures._expansion import (
    Interval,
    cheeger_bounds,
    mixing_bound,
    path_deviation_bound,
    vertex_expansion_bound,
)
from topogen.measures._flow import effective_density, structural_rank
from topogen.measures._girth import girth
from topogen.measures._network import Distances, clustering, distances, local_clustering
from topogen.measures._paths import PathCounts, is_symmetric, path_counts
from topogen.measures._profiles import DegreeProfile, degree_profiles, mean_path_count
from topogen.measures._spectral import (
    is_biregular,
    is_ramanujan,
    ramanujan_bound,
    ramanujan_ratios,
    second_singular_value,
    second_singular_values,
    singular_values,
    trace_bound,
)
from topogen.measures._symmetry import ShiftInvariance, is_circulant, shift_invariance
from topogen.measures._tail import DegreeTail, degree_tail

__all__ = [
    "DegreeProfile",
    "DegreeTail",
    "Degrees",
    "Distances",
    "Interval",
    "PathCounts",
    "Range",
    "ShiftInvariance",
    "cheeger_bounds",
    "clustering",
    "connections",
    "dead_neurons",
    "degree_profiles",
    "degree_tail",
    "degrees",
    "density",
    "distances",
    "effective_density",
    "effective_topology",
    "exact_density",
    "fan_in",
    "fan_out",
    "girth",
    "is_biregular",
    "is_circulant",
    "is_path_connected",
    "is_ramanujan",
    "is_symmetric",
    "local_clustering",
    "mean_path_count",
    "mixing_bound",
    "n_components",
    "path_connected_depth",
    "path_counts",
    "path_deviation_bound",
    "ramanujan_bound",
    "ramanujan_ratios",
    "reachability",
    "second_singular_value",
    "second_singular_values",
    "shift_invariance",
    "singular_values",
    "structural_rank",
    "trace_bound",
    "vertex_expansion_bound",
]
