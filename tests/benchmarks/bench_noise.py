"""Cost of noise, a candidate and an update: `python -m tests.benchmarks.bench_noise`.

Every row compares things measured in turns in one run, because the speed of a shared machine changes by the minute;
numbers are medians over the rounds, and a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from blackbox import recipes, rng
from blackbox.records import Recipe, Term

DIM = 1_000_000
KEY = rng.Key.from_seed(1).child("studies", "bench")
STREAM = KEY.stream(0)


def in_turns(n_rounds: int, *calls: Callable[[], object]) -> list[list[float]]:
    """Seconds of each call, in each of the rounds; a round runs every call once."""
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(n_rounds):
        for call, row in zip(calls, seconds, strict=True):
            began = time.perf_counter()
            call()
            row.append(time.perf_counter() - began)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    return median(a / b for a, b in zip(slow, fast, strict=True))


def numbers() -> list[str]:
    """Nanoseconds per number of every kind, against NumPy's own Philox."""
    numpy = np.random.Generator(np.random.Philox(1))
    out, wide = np.empty(DIM, dtype=np.float32), np.empty(DIM)
    ours, signs, uniforms, f32, f64 = in_turns(
        31,
        lambda: rng.normal(STREAM, 1, 0, DIM, out=out),
        lambda: rng.rademacher(STREAM, 1, 0, DIM, out=out),
        lambda: rng.uniform(STREAM, 1, 0, DIM),
        lambda: numpy.standard_normal(DIM, dtype=np.float32, out=out),
        lambda: numpy.standard_normal(DIM, out=wide),
    )
    ns = [f"{median(row) / DIM * 1e9:.2f}" for row in (ours, signs, uniforms, f32, f64)]
    return [
        f"| one normal | {ns[0]} ns | NumPy Philox float32 {ns[3]} ns: {ratio(f32, ours):.1f} times ours; "
        f"float64 {ns[4]} ns: {ratio(f64, ours):.1f} times |",
        f"| one sign | {ns[1]} ns | |",
        f"| one uniform (53 bits) | {ns[2]} ns | |",
    ]


def tiles() -> list[str]:
    """Microseconds of one call for eight neighbouring lanes, as the dense methods ask."""
    rows = []
    for dim in (5, 100, 1000):

        def many(dim: int = dim) -> None:
            for step in range(300):
                rng.normals(STREAM, step, range(8, 16), dim)

        def singly(dim: int = dim) -> None:
            for step in range(300):
                for lane in range(8, 16):
                    rng.normal(STREAM, step, lane, dim)

        def constructing(dim: int = dim) -> None:
            for step in range(300):
                generator = np.random.Generator(np.random.Philox(key=7, counter=[0, 0, 0, step]))
                generator.standard_normal((8, dim), dtype=np.float32)

        ours, one, numpy = in_turns(9, many, singly, constructing)
        us = [f"{median(row) / 300 * 1e6:.0f}" for row in (ours, one, numpy)]
        rows.append(
            f"| tile of 8 lanes, dim {dim} | {us[0]} us | lane by lane {us[1]} us; "
            f"a NumPy generator made for the call {us[2]} us: {ratio(numpy, ours):.1f} times ours |"
        )
    return rows


def candidate() -> list[str]:
    """A candidate of a million parameters: rebuilding it, and what travels."""
    base = rng.normal(STREAM, 0, 0, DIM)
    candidate = Recipe(recipes.digest(base), (Term(0, 412, 7, 0.02),))
    blobs = {candidate.base or "": base}
    numpy = np.random.Generator(np.random.Philox(1))
    out, noise, wide = np.empty(DIM, dtype=np.float32), np.empty(DIM, dtype=np.float32), np.empty(DIM)

    def float32() -> None:
        numpy.standard_normal(DIM, dtype=np.float32, out=noise)
        np.multiply(noise, np.float32(0.02), out=out)
        np.add(out, base, out=out)

    def float64() -> None:
        numpy.standard_normal(DIM, out=wide)
        np.multiply(wide, 0.02, out=wide)
        np.add(wide, base, out=wide)

    ours, f32, f64 = in_turns(31, lambda: recipes.materialise(candidate, KEY, DIM, blobs, out=out), float32, float64)
    ms = [f"{median(row) * 1e3:.2f}" for row in (ours, f32, f64)]
    text = len(json.dumps(recipes.to_json(candidate), separators=(",", ":")))
    trial = len(json.dumps(recipes.seed_encoded(candidate, KEY, DIM, blobs), separators=(",", ":")))
    return [
        f"| rebuild a candidate of 10^6 | {ms[0]} ms | with NumPy Philox float32 {ms[1]} ms: {ratio(f32, ours):.1f} "
        f"times ours; float64 {ms[2]} ms: {ratio(f64, ours):.1f} times |",
        f"| its recipe, packed | {len(recipes.pack(candidate))} bytes | the vector: {base.nbytes} bytes |",
        f"| its recipe, JSON | {text} bytes | with key, dim, rng name and check values {trial} bytes |",
    ]


def update() -> list[str]:
    """The update of a step: 256 mirrored lanes of a million coordinates, 128 draws."""
    terms = [Term(0, 412, i // 2, (-1) ** i * (0.5 - i / 255)) for i in range(256)]
    source = np.ones(1 << 25, dtype=np.float32)
    target = np.empty_like(source)
    sums, copies, reading = in_turns(
        3,
        lambda: recipes.weighted_noise_sum(terms, KEY, DIM),
        lambda: np.copyto(target, source),
        lambda: [rng.normal(STREAM, 412, lane, DIM, out=target[:DIM]) for lane in range(128)],
    )
    bandwidth = 2 * source.nbytes / median(copies)  # read and written
    stored = 128 * DIM * 4 / bandwidth  # the noise, had somebody stored it
    each = median(sums) / (128 * DIM) * 1e9
    return [
        f"| update from 256 mirrored lanes of 10^6 | {median(sums):.2f} s, {each:.2f} ns per draw and coordinate | "
        f"drawing the noise alone {median(reading):.2f} s |",
        f"| memory bandwidth (copy) | {bandwidth / 1e9:.1f} GB/s | reading stored float32 noise once would take "
        f"{stored:.3f} s: the update takes {median(sums) / stored:.0f} times that |",
    ]


def main() -> list[str]:
    """Markdown rows: what, measured, beside what."""
    return ["| noise | ours | beside |", "|---|---|---|", *numbers(), *tiles(), *candidate(), *update()]


if __name__ == "__main__":
    print("\n".join(main()))
