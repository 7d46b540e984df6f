"""Studies whose points live in a convex set, over HTTP."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from blackbox.regions import region_types
from tests.engine.region_examples import EXAMPLES, Example
from tests.server.conftest import Server, assert_problem

SHARES = {
    "shares": {"type": "vector", "dim": 3, "region": {"type": "simplex"}},
    "depth": {"type": "int", "low": 1, "high": 4},
}


def test_a_study_on_a_region_asks_feasible_points_and_keeps_its_space(server: Server) -> None:
    study = server.create(space=SHARES)
    assert server.http.get(f"/v1/studies/{study}").json()["space"] == SHARES
    for trial in server.ask(study, count=20)["trials"]:
        shares = np.array(trial["params"]["shares"])
        assert shares.min() >= 0
        assert shares.sum() == pytest.approx(1)
        assert trial["params"]["depth"] in (1, 2, 3, 4)
        server.tell(study, {"trial": trial["id"], "value": float(shares @ [3, 1, 2])})
    best = server.http.get(f"/v1/studies/{study}/best?view=recommended").json()["items"][0]["params"]
    assert sum(best["shares"]) == pytest.approx(1)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_every_region_can_be_searched_over_http(server: Server, example: Example) -> None:
    space = {"x": {"type": "vector", "dim": example.dim, "region": example.region.to_json()}}
    study = server.create(space=space, algorithm="auto")
    goal = example.region.lmo(np.ones(example.dim))
    for _ in range(3):
        for trial in server.ask(study, count=3)["trials"]:
            x = np.array(trial["params"]["x"])
            assert example.region.contains(x)
            server.tell(study, {"trial": trial["id"], "value": float(((x - goal) ** 2).sum())})
    recommended = server.http.get(f"/v1/studies/{study}/best?view=recommended").json()["items"][0]["params"]["x"]
    assert example.region.contains(np.array(recommended))
    told = server.tell(study, {"params": {"x": goal.tolist()}, "value": 0.0, "key": "k"})
    assert told["results"][0]["outcome"] == "injected"
    beyond = goal + 0.1 * example.region.diameter(example.dim) * np.sign(goal - recommended + 1e-9)
    told = server.tell(study, {"params": {"x": beyond.tolist()}, "value": 0.0, "key": "l"})
    assert told["results"][0]["outcome"] == ("injected" if example.region.contains(beyond) else "rejected")


def test_the_schema_names_every_region(server: Server) -> None:
    schemas = server.http.get("/openapi.json").json()["components"]["schemas"]
    (kinds, _) = schemas["Vector"]["properties"]["region"]["anyOf"]
    assert set(kinds["discriminator"]["mapping"]) == set(region_types())
    assert schemas["Simplex"]["properties"]["radius"]["description"] == "Sum of the coordinates."
    assert '"region":{"type":"simplex"}' in server.http.get("/llms.txt").text


def test_auto_finds_a_method_for_a_region(server: Server) -> None:
    shape = server.http.post("/v1/studies", json={"name": "a", "space": SHARES}).json()
    assert "convex region" in shape["algorithm"]["reason"]
    methods = {method["name"]: method for method in server.http.get("/v1/algorithms").json()["algorithms"]}
    assert "convex" in methods[shape["algorithm"]["resolved"]]["regions"]


def test_given_points_must_lie_in_the_region(server: Server) -> None:
    study = server.create(space=SHARES)
    for shares, status in (([0.5, 0.5, 0.0], 201), ([0.5, 0.5, 0.5], 422)):
        body = {"trials": [{"params": {"shares": shares, "depth": 1}}]}
        answer = server.http.post(f"/v1/studies/{study}/trials", json=body)
        if status == 201:
            assert answer.status_code == 201, answer.text
        else:
            problem = assert_problem(answer, 422, "invalid-space")
            assert "must lie in its simplex region, is outside by 0.5" in problem["detail"]
    told = server.tell(study, {"params": {"shares": [2, -1, 0], "depth": 1}, "value": 0.0, "key": "k"})
    assert told["results"][0]["outcome"] == "rejected"
    assert told["results"][0]["problem"]["errors"][0]["code"] == "infeasible"
    assert server.ask(study)["trials"][0]["params"] == {"shares": [0.5, 0.5, 0.0], "depth": 1}


@pytest.mark.parametrize(
    ("raw", "pointer", "words"),
    [
        ({"type": "simplx"}, "/space/x/region/type", 'did you mean "simplex"'),
        ({"type": "simplex", "radius": -1}, "/space/x/region/radius", "greater than 0"),
        ({"type": "box", "lower": [0, 0]}, "/space/x/region", "2 coordinates, the point 3"),
        ({"type": "box", "lower": 2}, "/space/x/region/lower", "the set is empty"),
        ("simplex", "/space/x/region", "must be an object"),
    ],
)
def test_a_bad_region_is_refused_and_says_what_was_expected(server: Server, raw: Any, pointer: str, words: str) -> None:
    space = {"x": {"type": "vector", "dim": 3, "region": raw}}
    problem = assert_problem(server.http.post("/v1/studies", json={"name": "a", "space": space}), 422, "invalid-space")
    assert [fault["pointer"] for fault in problem["errors"]] == [pointer]
    assert words in problem["detail"]


def test_a_method_that_treats_no_regions_names_those_that_do(server: Server) -> None:
    body = {"name": "a", "space": SHARES, "algorithm": "cma_es"}
    problem = assert_problem(server.http.post("/v1/studies", json=body), 422, "incompatible-problem")
    assert "regions of kind box, free, the space is of kind convex" in problem["detail"]
    assert "random_search" in problem["hint"]
