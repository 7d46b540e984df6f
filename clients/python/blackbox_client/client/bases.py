"""The base vectors used last, so that a step's recipes costs one download."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from blackbox_client.errors import BaseMismatch
from blackbox_client.recipes import Blob, UnknownEncoding


class BaseCache:
    """A few base vectors, each fetched by one thread while the others wait for it.

    Parameters
    ----------
    n_kept : how many; the least recently used one goes first.
    """

    def __init__(self, n_kept: int = 4) -> None:
        self._kept: OrderedDict[tuple[str, str, str], Blob] = OrderedDict()
        self._n_kept = n_kept
        self._lock = threading.Lock()

    def get(self, study: str, version: str, dtype: str, sha256: str | None, fetch: Callable[[], bytes]) -> Blob:
        """A vector, fetched where it is not kept or not the promised one.

        Parameters
        ----------
        study, version : whose it is, and its name there.
        dtype : ``"f32"`` or ``"f64"``: what the raw bytes are.
        sha256 : digest it must have, if one is promised; it then names the vector, whatever `version` says, because
            several steps may share one.
        fetch : gives its little-endian bytes.

        Raises
        ------
        BaseMismatch
            If what is fetched twice is not what was promised.
        """
        name = (study, sha256 or version, dtype)
        with self._lock:
            blob = self._kept.pop(name, None)
            if blob is None:
                blob = _fetched(f"base {version} of {study}", dtype, sha256, fetch)
            self._kept[name] = blob
            while len(self._kept) > self._n_kept:
                self._kept.popitem(last=False)
            return blob


def _fetched(what: str, dtype: str, sha256: str | None, fetch: Callable[[], bytes]) -> Blob:
    if dtype not in ("f32", "f64"):
        raise UnknownEncoding(f"a base vector is f32 or f64, got {dtype!r}; update blackbox-zoo-client")
    itemsize = int(dtype[1:]) // 8
    said = ""
    for _ in range(2):
        body = fetch()
        if len(body) % itemsize:
            said = f"{len(body)} bytes are no whole number of {dtype}"
            continue
        blob = Blob.of(np.frombuffer(body, dtype=f"<f{itemsize}").astype(f"f{itemsize}", copy=False))
        if sha256 is None or blob.sha256 == sha256:
            return blob
        said = f"its sha256 is {blob.sha256}, not {sha256}"
    raise BaseMismatch(
        f"{what} is not the promised one: {said}; if this lasts, look for a proxy that changes or cuts off answers"
    )
