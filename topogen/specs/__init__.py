"""The families. `ALL_SPECS` lists them; the contract tests, the docs and the command read it."""

from topogen.specs._array_code import ArrayCode
from topogen.specs._biregular import RandomBiregular
from topogen.specs._blocks import BlockDiagonal, NOfM
from topogen.specs._butterfly import Butterfly, FlatButterfly
from topogen.specs._cayley_f2 import CayleyF2
from topogen.specs._chordal_cycle import ChordalCycle
from topogen.specs._compose import Chain, Repeat, Trim
from topogen.specs._dense import Dense
from topogen.specs._diagonal import Banded, Diagonal
from topogen.specs._erdos_renyi import ErdosRenyi
from topogen.specs._gabber_galil import GabberGalil
from topogen.specs._graph_challenge import GraphChallenge
from topogen.specs._kron import Block, Kron
from topogen.specs._lps import LPS
from topogen.specs._monarch import Monarch
from topogen.specs._paley import Paley
from topogen.specs._projective_plane import ProjectivePlane
from topogen.specs._radix import RadixNet
from topogen.specs._random_lift import RandomLift
from topogen.specs._receptive_field import BipartiteReceptiveField
from topogen.specs._relabel import Permute, Transpose
from topogen.specs._scale_free import BarabasiAlbert, BipartiteScaleFree
from topogen.specs._small_world import BipartiteSmallWorld, WattsStrogatz
from topogen.specs._xnet import ConstantFanIn, XNet

__all__ = [
    "ALL_SPECS",
    "LPS",
    "ArrayCode",
    "Banded",
    "BarabasiAlbert",
    "BipartiteReceptiveField",
    "BipartiteScaleFree",
    "BipartiteSmallWorld",
    "Block",
    "BlockDiagonal",
    "Butterfly",
    "CayleyF2",
    "Chain",
    "ChordalCycle",
    "ConstantFanIn",
    "Dense",
    "Diagonal",
    "ErdosRenyi",
    "FlatButterfly",
    "GabberGalil",
    "GraphChallenge",
    "Kron",
    "Monarch",
    "NOfM",
    "Paley",
    "Permute",
    "ProjectivePlane",
    "RadixNet",
    "RandomBiregular",
    "RandomLift",
    "Repeat",
    "Transpose",
    "Trim",
    "WattsStrogatz",
    "XNet",
]

ALL_SPECS = (
    RadixNet,
    GraphChallenge,
    Dense,
    ErdosRenyi,
    RandomBiregular,
    Butterfly,
    FlatButterfly,
    XNet,
    ConstantFanIn,
    Monarch,
    BlockDiagonal,
    NOfM,
    Diagonal,
    Banded,
    BipartiteSmallWorld,
    WattsStrogatz,
    BipartiteReceptiveField,
    BarabasiAlbert,
    BipartiteScaleFree,
    ArrayCode,
    ProjectivePlane,
    LPS,
    Paley,
    CayleyF2,
    GabberGalil,
    ChordalCycle,
    RandomLift,
    Trim,
    Chain,
    Kron,
    Block,
    Permute,
    Transpose,
    Repeat,
)
