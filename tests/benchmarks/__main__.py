"""`python -m tests.benchmarks [name ...]`: run the measurements and write their tables into BENCHMARKS.md.

Every `bench_*.py` has a `main() -> list[str]` that returns the lines of its section and compares, in one run, with a
named peer or a physical limit. A section that is not run keeps its last figures.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before NumPy is imported: two threads on two cores measure the scheduler

HERE = Path(__file__).parent
PAGE = HERE / "BENCHMARKS.md"
ORDER = (
    *("bench_noise", "bench_recipes", "bench_million", "bench_ray", "bench_cma", "bench_bbob", "bench_cbo"),
    *("bench_regions", "bench_frank_wolfe", "bench_service", "bench_attacks"),
)


def processor() -> str:
    """The processor's name as Linux gives it."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def main(wanted: list[str]) -> None:
    """Run the sections whose name contains one of the words (all without words), and write the page."""
    sections = (
        dict(re.findall(r"<!-- (bench_\w+) -->\n(.*?)<!-- end -->", PAGE.read_text(), re.S)) if PAGE.exists() else {}
    )
    for name in ORDER:
        if wanted and not any(word in name for word in wanted):
            continue
        module = importlib.import_module(f"tests.benchmarks.{name}")
        print(f"{name} ...", flush=True)
        title = (module.__doc__ or name).strip().splitlines()[0].split(": `")[0].rstrip(".")
        before = os.getloadavg()[0]
        lines = module.main()
        machine = f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        load = f"load average {before:.1f} before, {os.getloadavg()[0]:.1f} after"
        body = "\n".join([f"## {title}", "", f"`python -m tests.benchmarks {name}` on {machine}; {load}.", "", *lines])
        sections[name] = body + "\n\n"
        print(body, flush=True)
    head = (
        "# Benchmarks\n\n"
        "Ratios within one run, beside a named peer or a physical limit; machines are noisy, so absolute figures are\n"
        "for orientation. `make bench` writes this page; `python -m tests.benchmarks NAME` one section of it.\n\n"
    )
    PAGE.write_text(head + "".join(f"<!-- {n} -->\n{sections[n]}<!-- end -->\n\n" for n in ORDER if n in sections))


if __name__ == "__main__":
    main(sys.argv[1:])
