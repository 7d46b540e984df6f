"""Points as sums: a base vector plus noise named by its address, so that a million numbers travel as a hundred bytes.

`points` builds the point of a recipe, `sums` the weighted sums of noise that update a base vector, `wire` converts
recipes to JSON and bytes, `cache` keeps the points of parents, `slices` splits the work by coordinates. The wire forms
are specified for other languages in clients/NOISE.md; `blackbox_client.recipes` is the client's own implementation.
"""

from blackbox.recipes.cache import PrefixCache, cache_key
from blackbox.recipes.points import check, materialise, seed_encoded
from blackbox.recipes.sums import KINDS, Blobs, Floats, digest, weighted_noise_sum
from blackbox.recipes.wire import from_json, pack, to_json, unpack

__all__ = [
    "KINDS",
    "Blobs",
    "Floats",
    "PrefixCache",
    "cache_key",
    "check",
    "digest",
    "from_json",
    "materialise",
    "pack",
    "seed_encoded",
    "to_json",
    "unpack",
    "weighted_noise_sum",
]
