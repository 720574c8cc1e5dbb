"""What every family is: a spec. Its random streams and its JSON form."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import numpy as np

from topogen import checks
from topogen._claims import CONNECTIONS, Claim
from topogen._topology import pattern_bytes
from topogen.errors import FormatError, SpecError

if TYPE_CHECKING:
    import scipy.sparse as sp


__all__ = ["AbstractSpec", "as_seed", "child", "spec_from_json", "spec_to_json", "stream"]

# What a draw belongs to. The numbers are part of every seeded result: never change one, only add.
_KEYS = {"layer": 0, "block": 1, "permutation": 2, "member": 3, "attempt": 4}

_FAMILIES: dict[str, type[AbstractSpec]] = {}

T = TypeVar("T")


class AbstractSpec(ABC):
    """A topology described completely and cheaply, before it is built.

    Concrete families are final, frozen dataclasses (``frozen=True, slots=True, kw_only=True``) whose fields are ints,
    floats, strings, None, other specs, or tuples of those; they check every field on construction, so that an
    impossible spec does not exist. A family is known by its class name, which must be unique.

    Attributes
    ----------
    sizes : tuple of int
        (n_0, ..., n_L), known without building.
    is_random : bool
        Whether `layer` needs a seed.
    """

    __slots__ = ()

    sizes: tuple[int, ...]
    is_random: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = _FAMILIES.get(cls.__name__)
        # a dataclass with slots is made twice, the second time without its qualified name, and a notebook's cell runs
        # again: within a module the last one counts
        if known is not None and known.__module__ != cls.__module__:
            raise TypeError(f"A family named {cls.__name__} exists already, in {known.__module__}.")
        _FAMILIES[cls.__name__] = cls

    @abstractmethod
    def layer(self, k: int, seed: np.random.SeedSequence | None) -> sp.csr_array:
        """Build layer k alone, bit-identically wherever and in whatever order it is built.

        Parameters
        ----------
        k : int
            In [0, depth).
        seed : SeedSequence or None
            Every draw comes from ``stream(seed, *key)``; None only where the family is not random.

        Returns
        -------
        csr_array, shape (sizes[k], sizes[k + 1]), dtype bool
            Canonical: sorted indices, no duplicates, no stored zeros.
        """

    @abstractmethod
    def claims(self) -> tuple[Claim, ...]:
        """Return what the family's theorems promise, each with its source; cheap, nothing is built."""

    @property
    def depth(self) -> int:
        """Number of layer patterns."""
        return len(self.sizes) - 1

    def shape(self, k: int) -> tuple[int, int]:
        """Return the shape of layer k; IndexError outside [0, depth)."""
        sizes = self.sizes  # which many families compute
        if not 0 <= k < len(sizes) - 1:
            raise IndexError(f"{type(self).__name__} has layers 0..{len(sizes) - 2}. Got {k}.")
        return sizes[k], sizes[k + 1]

    def layer_bytes(self) -> tuple[int, ...]:
        """Return the least bytes that building each layer takes; 0 where the claims do not tell.

        A spec that builds more than it returns says so here: what does not fit is refused before it is built.
        """
        for claim in self.claims():
            if claim.measure == CONNECTIONS and claim.relation in ("==", "<="):
                shapes = zip(self.sizes[:-1], self.sizes[1:], claim.bound, strict=True)
                return tuple(pattern_bytes(n_in, n_out, nnz) for n_in, n_out, nnz in shapes)
        return (0,) * self.depth

    def to_fields(self) -> dict[str, Any]:
        """Return the fields that describe the spec, ready for `from_fields`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_fields(cls: type[T], values: dict[str, Any]) -> T:
        """Build the spec from its fields; the constructor checks them."""
        return cls(**values)


def child(seed: np.random.SeedSequence, *key: str | int) -> np.random.SeedSequence:
    """Return the seed that `key` names below `seed`: ``SeedSequence(entropy, spawn_key=seed.spawn_key + key)``.

    Unlike ``SeedSequence.spawn`` it has no state: the same key gives the same seed, in any order, on any worker.

    Parameters
    ----------
    seed : numpy.random.SeedSequence
        Is not changed.
    *key : str or int
        Words name what a draw belongs to ("layer", "block", "permutation", "member", "attempt"), ints say which.

    Returns
    -------
    numpy.random.SeedSequence

    Examples
    --------
    >>> import numpy as np, topogen as tg
    >>> tg.child(np.random.SeedSequence(7), "member", 2).spawn_key
    (3, 2)
    """
    numbers = tuple(_KEYS[part] if isinstance(part, str) else part for part in key)
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, *numbers), pool_size=seed.pool_size)


def stream(seed: np.random.SeedSequence | None, *key: str | int) -> np.random.Generator:
    """Return the generator for the draws that `key` names.

    Parameters
    ----------
    seed : numpy.random.SeedSequence
        What `AbstractSpec.layer` was given; None is refused.
    *key : str or int
        As for `child`.

    Returns
    -------
    numpy.random.Generator
        PCG64, seeded with ``child(seed, *key)``.

    Raises
    ------
    SpecError
        If `seed` is None.

    Examples
    --------
    >>> import numpy as np, topogen as tg
    >>> seed = np.random.SeedSequence(0)
    >>> a, b = (tg.stream(seed, "layer", 4).integers(1000, size=3).tolist() for _ in range(2))
    >>> a == b
    True
    """
    if seed is None:
        raise SpecError("A random family needs a seed: pass rng= to generate, an int for example. Got None.")
    return np.random.Generator(np.random.PCG64(child(seed, *key)))


def as_seed(rng: Any, *, owner: str = "generate") -> np.random.SeedSequence | None:
    """Return an int, a SeedSequence or a Generator as a SeedSequence, which `stream` draws from.

    Parameters
    ----------
    rng : int >= 0, numpy.random.SeedSequence, numpy.random.Generator or None
        From a Generator 128 bits are drawn, once.
    owner : str
        The function whose 'rng' parameter it is, for the error.

    Returns
    -------
    numpy.random.SeedSequence or None
        None for None.

    Raises
    ------
    SpecError
        If `rng` is none of these.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.as_seed(7).entropy
    7
    """
    if rng is None or isinstance(rng, np.random.SeedSequence):
        return rng
    if isinstance(rng, np.random.Generator):
        words = rng.integers(0, 2**32, size=4, dtype=np.uint64)
        return np.random.SeedSequence(sum(int(word) << 32 * i for i, word in enumerate(words)))
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool) and rng >= 0:
        return np.random.SeedSequence(int(cast(int, rng)))
    return checks.refuse("rng", owner, "an int >= 0, a numpy SeedSequence or a numpy Generator", cast(object, rng))


def spec_to_json(spec: AbstractSpec) -> str:
    """Return the spec as one line of JSON, which `spec_from_json` reads back to an equal spec.

    Parameters
    ----------
    spec : AbstractSpec

    Returns
    -------
    str

    Examples
    --------
    >>> import topogen as tg
    >>> tg.spec_to_json(tg.Dense(sizes=[4, 2]))
    '{"family": "Dense", "sizes": [4, 2]}'
    """
    checks.instance(spec, "spec", "spec_to_json", AbstractSpec, "an")
    return json.dumps(_to_plain(spec), allow_nan=False)


def spec_from_json(text: str) -> AbstractSpec:
    """Return the spec of a JSON text that `spec_to_json` wrote.

    Parameters
    ----------
    text : str

    Returns
    -------
    AbstractSpec
        Built by the family's constructor, which checks every field.

    Raises
    ------
    FormatError
        If the text is no JSON, names no known family, or describes an impossible spec.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.spec_from_json('{"family": "Dense", "sizes": [4, 2]}')
    Dense(sizes=(4, 2))
    """
    try:
        spec = _from_plain(json.loads(text))
    except FormatError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"The spec is not JSON: {error}.") from None
    if not isinstance(spec, AbstractSpec):
        raise FormatError(f"The spec must be a JSON object with a 'family'. Got {text[:80]!r}.")
    return spec


def _to_plain(value: Any) -> Any:
    if isinstance(value, AbstractSpec):
        plain = {name: _to_plain(field) for name, field in value.to_fields().items()}
        return {"family": type(value).__name__, **plain}
    if isinstance(value, tuple):
        return [_to_plain(entry) for entry in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _from_plain(plain: Any) -> Any:
    if isinstance(plain, list):
        return tuple(_from_plain(entry) for entry in plain)  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(plain, dict):
        return plain
    values: dict[str, Any] = {str(name): _from_plain(value) for name, value in plain.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    family = values.pop("family", None)
    if family not in _FAMILIES:
        near = get_close_matches(str(family), _FAMILIES, n=1)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise FormatError(f"The spec's family must be known (import the module that defines it). Got {family!r}{hint}.")
    try:
        return _FAMILIES[family].from_fields(values)
    except (SpecError, TypeError, ValueError) as error:
        raise FormatError(f"The spec of family {family} is impossible: {error}") from None
