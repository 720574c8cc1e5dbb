"""The published figures of the study of Alford et al.: accuracies in percent, of one net each.

From the authors' table of results and the slides of 2018 (arXiv:1810.00299); their paper of 2019 may have later ones.
"""

from __future__ import annotations

__all__ = ["CURVES", "GIVEN", "PRUNED"]

_LENET_300_100, _LENET_5, _CIFAR = ("lenet-300-100", "mnist"), ("lenet-5", "mnist"), ("lenet-5", "cifar10")

# network and data set -> topology -> density -> accuracy
PRUNED: dict[tuple[str, str], dict[str, dict[float, float]]] = {
    _LENET_300_100: {
        "dense": {1.0: 97.03},
        "one-time retrained": {0.5: 96.88, 0.25: 96.82, 0.1: 96.19, 0.05: 95.65, 0.01: 56.08},
        "iterative": {0.5: 97.50, 0.25: 97.44, 0.1: 97.40, 0.05: 97.30, 0.01: 96.83},
        "iterative retrained": {0.5: 97.03, 0.25: 97.05, 0.1: 97.02, 0.05: 96.34, 0.01: 96.08},
    },
    _LENET_5: {
        "dense": {1.0: 99.25},
        "one-time retrained": {0.5: 98.95, 0.25: 79.94, 0.1: 89.92, 0.05: 98.32, 0.01: 11.35},
        "iterative": {0.5: 99.17, 0.25: 98.91, 0.1: 98.84, 0.05: 98.80, 0.01: 98.48},
        "iterative retrained": {0.5: 98.78, 0.25: 69.92, 0.1: 88.67, 0.05: 98.54, 0.01: 77.96},
    },
    _CIFAR: {
        "dense": {1.0: 80.14},
        "iterative": {0.5: 79.59, 0.25: 79.08, 0.1: 74.9},
    },
}

# the same for one-time pruning by one threshold without training afterwards, as read off a curve
CURVES: dict[tuple[str, str], dict[float, float]] = {
    _LENET_300_100: {0.5: 97.4, 0.25: 97.0, 0.1: 95.2},
    _LENET_5: {0.5: 99.05, 0.1: 98.0, 0.05: 97.0},
    _CIFAR: {},
}

# network and data set -> (topology, density, width) -> accuracy
GIVEN: dict[tuple[str, str], dict[tuple[str, float, int], float]] = {
    _LENET_300_100: {
        ("random", 0.01, 1): 74.1, ("random", 0.05, 1): 91.49, ("random", 0.1, 1): 93.42, ("random", 0.5, 1): 96.28,
        ("random", 0.5, 2): 96.65, ("random", 0.1, 10): 94.45, ("random", 0.01, 100): 94.3,
        ("radix", 0.1, 1): 93.57, ("radix", 0.1, 10): 93.98,
    },
    _LENET_5: {
        ("random", 0.01, 1): 49.36, ("random", 0.05, 1): 98.38, ("random", 0.1, 1): 98.77, ("random", 0.5, 1): 99.2,
        ("random", 0.5, 2): 99.14, ("random", 0.1, 10): 98.91,
    },
    _CIFAR: {
        ("random", 0.01, 1): 9.99, ("random", 0.05, 1): 71.34, ("random", 0.1, 1): 74.61, ("random", 0.5, 1): 79.22,
        ("random", 0.5, 2): 80.4, ("random", 0.1, 10): 79.35,
    },
}  # fmt: skip
