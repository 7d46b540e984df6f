"""The search space: parameters as people write them, and the map to the internal vectors of the algorithms.

`parameters` has one class per parameter type, `space` the ordered collection of them and the map between parameters
and internal vectors, `checks` their common checks and error messages.
"""

from blackbox.space.parameters import Categorical, Float, Int, Parameter, Vector
from blackbox.space.space import Space

__all__ = ["Categorical", "Float", "Int", "Parameter", "Space", "Vector"]
