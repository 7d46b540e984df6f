"""Parts of Frank-Wolfe methods on values.

================  =====================================================================================================
`schemes`         which points a gradient needs, and the averaged gradient that their values make
`rules`           the step that follows from a gradient and the oracle's answer, with or without values of candidates
`certificates`    the gap, measured with directions of its own
`mixtures`        iterates as mixtures of few atoms, and a search that moves weight between these
`state`           the state that all of them read
================  =====================================================================================================

Schemes and rules know nothing of one another; `blackbox.algorithms.zo_frank_wolfe` composes one of each.
"""

from blackbox.toolbox.frank_wolfe.certificates import Certificate, bracket, widened
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
    "widened",
]
