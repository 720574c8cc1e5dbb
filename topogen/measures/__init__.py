"""Numbers of a topology, measured on its layers and on nothing else.

Every function here takes `x`, which is a `topogen.Topology`, a sequence of matrices whose widths match, or one matrix
(scipy sparse, numpy, or nested lists). A connection is an entry that is not zero; rows are inputs, columns are outputs.
`x` is never changed, and it need not be topogen's: pruned, irregular and half-empty networks are measured alike.
"""

from topogen.measures._connectivity import dead_neurons, is_path_connected, n_components, reachability
from topogen.measures._degrees import Degrees, Range, connections, degrees, density, exact_density, fan_in, fan_out
from topogen.measures._paths import PathCounts, is_symmetric, path_counts

__all__ = [
    "Degrees",
    "PathCounts",
    "Range",
    "connections",
    "dead_neurons",
    "degrees",
    "density",
    "exact_density",
    "fan_in",
    "fan_out",
    "is_path_connected",
    "is_symmetric",
    "n_components",
    "path_counts",
    "reachability",
]
