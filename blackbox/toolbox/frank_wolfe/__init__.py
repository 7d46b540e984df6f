"""What Frank-Wolfe methods on values are composed of.

================  =====================================================================================================
`schemes`         which points a gradient needs, and the averaged gradient that their values make
`rules`           what a gradient and the oracle's answer to it become: how far to go, whether to look first
`certificates`    the gap, measured with directions of its own
`mixtures`        iterates as mixtures of few atoms, and a search that moves weight between these
`state`           the state that all of them look at
================  =====================================================================================================

Schemes and rules know nothing of one another; `blackbox.algorithms.zo_frank_wolfe` composes one of each.
"""

from blackbox.toolbox.frank_wolfe.certificates import Certificate, bracket
from blackbox.toolbox.frank_wolfe.mixtures import MOST_ATOMS, Mixture, Search, least_on_segment, most_atoms
from blackbox.toolbox.frank_wolfe.state import ZoFrankWolfeState

__all__ = [
    "MOST_ATOMS",
    "Certificate",
    "Mixture",
    "Search",
    "ZoFrankWolfeState",
    "bracket",
    "least_on_segment",
    "most_atoms",
]
