"""The families. `ALL_SPECS` lists them; the contract tests, the docs and the command read it."""

from topogen.specs._biregular import RandomBiregular
from topogen.specs._compose import Chain, Trim
from topogen.specs._dense import Dense
from topogen.specs._erdos_renyi import ErdosRenyi
from topogen.specs._radix import RadixNet

__all__ = ["ALL_SPECS", "Chain", "Dense", "ErdosRenyi", "RadixNet", "RandomBiregular", "Trim"]

ALL_SPECS = (RadixNet, Dense, ErdosRenyi, RandomBiregular, Trim, Chain)
