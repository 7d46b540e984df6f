"""The search space: what people write, and how parameters become the internal vector of the algorithms.

`parameters` has one class per parameter type, `space` the ordered collection of them and the map between parameters
and internal vectors, `checks` what both say of values and descriptions that do not fit.
"""

from blackbox.space.parameters import Categorical, Float, Int, Parameter, Vector
from blackbox.space.space import Space

__all__ = ["Categorical", "Float", "Int", "Parameter", "Space", "Vector"]
