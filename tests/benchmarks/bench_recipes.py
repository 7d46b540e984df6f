"""Cost of a candidate and of a step of a million parameters: `python -m tests.benchmarks.bench_recipes`.

Everything goes through the registered `openai_es`, as a study would call it. Rows compare things measured in turns in
one run, like those of `bench_noise`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import median

import numpy as np

from blackbox import codec, recipes
from blackbox.algorithm import build, resolve_options
from blackbox.records import NOTHING_PENDING, Results
from blackbox.rng import Key
from blackbox.space import Space, Vector
from tests.benchmarks.bench_noise import in_turns, ratio

DIM = 1_000_000
POPSIZE = 256
KEY = Key.from_seed(1).child("studies", "bench")
SPACE = Space({"weights": Vector(dim=DIM)})
METHOD = build("openai_es", SPACE, resolve_options("openai_es", SPACE, {"popsize": POPSIZE}), KEY)


def one_step() -> Results:
    """The results of one step: every value is another one."""
    lanes = np.arange(POPSIZE)
    points = METHOD.ask(METHOD.init(), range(POPSIZE), NOTHING_PENDING)
    return Results(np.zeros(POPSIZE, dtype=np.int64), lanes, points, (lanes * 37 % 251).reshape(-1, 1).astype(float))


def candidate() -> list[str]:
    """One candidate: what travels, and what it costs to rebuild it where theta is."""
    state = METHOD.tell(METHOD.init(), one_step())
    (asked,) = METHOD.ask(state, [POPSIZE - 1], NOTHING_PENDING).recipes
    blobs = {state.digest: state.theta}
    numpy = np.random.Generator(np.random.Philox(1))
    out, noise, wide = np.empty(DIM, dtype=np.float32), np.empty(DIM, dtype=np.float32), np.empty(DIM)

    def float32() -> None:
        numpy.standard_normal(DIM, dtype=np.float32, out=noise)
        np.multiply(noise, np.float32(0.02), out=out)
        np.add(out, state.theta, out=out)

    def normals_only() -> None:
        numpy.standard_normal(DIM, out=wide)

    ours, f32, f64 = in_turns(21, lambda: recipes.materialise(asked, KEY, DIM, blobs, out=out), float32, normals_only)
    ms = [f"{median(row) * 1e3:.2f}" for row in (ours, f32, f64)]
    text = json.dumps(recipes.to_json(asked), separators=(",", ":"))
    (asks,) = in_turns(21, lambda: METHOD.ask(state, range(POPSIZE), NOTHING_PENDING))
    return [
        f"| a candidate of 10^6, packed | {len(recipes.pack(asked))} bytes | its vector: {state.theta.nbytes} bytes |",
        f"| as JSON | {len(text.encode())} bytes | |",
        f"| rebuilding it | {ms[0]} ms | with NumPy Philox float32 {ms[1]} ms: {ratio(f32, ours):.1f} times ours; "
        f"its float64 normals alone {ms[2]} ms: {ratio(f64, ours):.1f} times |",
        f"| asking {POPSIZE} lanes | {median(asks) * 1e3:.2f} ms | |",
    ]


def update() -> list[str]:
    """The update of a step, whole, against the noise sum in it and against moving memory."""
    state, results = METHOD.init(), one_step()
    asked = [term for one in results.points.recipes for term in one.terms]
    terms = [replace(term, scale=float(i)) for i, term in enumerate(asked)]  # so that no pair cancels
    source = np.ones(1 << 25, dtype=np.float32)
    target = np.empty_like(source)
    tells, sums, copies = in_turns(
        5,
        lambda: METHOD.tell(state, results),
        lambda: recipes.weighted_noise_sum(terms, KEY, DIM),
        lambda: np.copyto(target, source),
    )
    bandwidth = 2 * source.nbytes / median(copies)  # read and written
    stored = POPSIZE // 2 * DIM * 4 / bandwidth
    (closes,) = in_turns(9, lambda: codec.digest(codec.encode(state)))
    return [
        f"| update from {POPSIZE} mirrored lanes of 10^6 | {median(tells):.2f} s | {POPSIZE // 2} draws: "
        f"{median(tells) / (POPSIZE // 2 * DIM) * 1e9:.2f} ns per draw and coordinate; the noise sum alone "
        f"{median(sums):.2f} s, {100 / ratio(tells, sums):.0f} % of it |",
        f"| memory bandwidth (copy) | {bandwidth / 1e9:.1f} GB/s | reading that noise once, had somebody stored it: "
        f"{stored:.3f} s; the update takes {median(tells) / stored:.0f} times that |",
        f"| encoding and hashing the state | {median(closes) * 1e3:.0f} ms | {len(codec.encode(state)) / 1e6:.0f} MB |",
    ]


def main() -> list[str]:
    """Markdown rows: what, measured, beside what."""
    return ["| recipes | ours | beside |", "|---|---|---|", *candidate(), *update()]


if __name__ == "__main__":
    print("\n".join(main()))
