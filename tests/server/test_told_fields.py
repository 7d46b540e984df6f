"""A field that may be told beside the value is declared once; service, `minimize` and the protocol's page follow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import blackbox
from blackbox.errors import InvalidInput
from blackbox.study.side_data import TOLD, ToldField
from tests.server.conftest import Server, document

PAGE = Path(__file__).parents[2] / "clients" / "README.md"
EXAMPLES = {
    "stderr": 0.1, "n": 3, "cost": {"seconds": 2.0}, "behaviour": [0.5, 1.0], "sums": {"count": 2, "total": [0.5]},
    "info": {"commit": "c0ffee"}, "reason": "too steep", "fidelity": 0.25,
}  # fmt: skip


def test_the_page_has_a_line_for_each() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", PAGE.read_text().split("## Beside the value")[1], re.M)
    assert [row[0] for row in rows] == list(TOLD)
    for name, about, used_by in rows:
        assert (about, used_by) == (TOLD[name].about, TOLD[name].used_by or "kept with the trial"), name


def test_the_schema_of_a_result_has_each_with_what_it_says() -> None:
    fields = document()["components"]["schemas"]["Result"]["properties"]
    for name, told in TOLD.items():
        assert fields[name]["description"] == told.about
    assert set(fields) - set(TOLD) == {"trial", "lease", "status", "value", "error", "params", "source", "key"}


@pytest.mark.parametrize("name", TOLD)
def test_what_is_told_is_kept_with_the_trial(server: Server, name: str) -> None:
    study = server.create()
    server.ask(study)
    assert server.outcome(study, trial="t_1", value=1.0, **{name: EXAMPLES[name]})["outcome"] == "applied"
    assert server.http.get(f"/v1/studies/{study}/trials/t_1").json()["extra"] == {name: EXAMPLES[name]}


@pytest.mark.parametrize("name", [name for name, told in TOLD.items() if told.too_large is not None])
def test_what_is_too_large_is_refused_with_a_hint(server: Server, name: str) -> None:
    study = server.create()
    server.ask(study)
    large = {"a": [0.125] * 5000}
    problem = server.outcome(study, trial="t_1", value=1.0, **{name: large})["problem"]
    assert (problem["code"], problem["hint"]) == ("too-large", TOLD[name].too_large)
    assert problem["errors"][0]["pointer"] == f"/results/0/{name}"


@pytest.mark.parametrize(("name", "told"), TOLD.items())
def test_an_objective_may_return_those_that_can_be_read_from_it(name: str, told: ToldField) -> None:
    def objective(x: object) -> dict[str, object]:
        return {"value": 1.0, name: EXAMPLES[name]}

    if told.read is None:
        with pytest.raises(InvalidInput, match=f"'{name}'"):
            blackbox.minimize(objective, [(0, 1)], "random_search", budget=1)
    else:
        assert blackbox.minimize(objective, [(0, 1)], "random_search", budget=1).nfev == 1
