"""The errors topogen raises: one root, one class for each kind of failure."""

__all__ = ["ClaimError", "FormatError", "GenerationError", "SpecError", "TopogenError"]


class TopogenError(Exception):
    """Root of every error that topogen raises on purpose."""


class SpecError(TopogenError, ValueError):
    """An argument is impossible: the sentence names it, the requirement and the value."""


class GenerationError(TopogenError, RuntimeError):
    """A feasible random construction did not succeed within its bounded number of tries."""


class ClaimError(TopogenError):
    """A topology breaks a claim of its spec."""


class FormatError(TopogenError, ValueError):
    """A file is damaged, foreign or of an unknown version; the sentence names what is wrong."""
