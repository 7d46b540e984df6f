"""The health of a study over HTTP, and the pause of one whose evaluators are broken."""

from __future__ import annotations

from blackbox_client.worker.evaluation import evaluate

from tests.server.conftest import Server


def test_a_study_whose_objective_returns_text_is_paused_and_says_why(server: Server) -> None:
    study = server.create(budget={"evaluations": 100}, algorithm="random_search")
    item = evaluate(lambda params: "0.5", ({},)).item()
    assert (item["status"], item["error"]["type"]) == ("failed", "UnusableResult")
    for _ in range(5):
        (trial,) = server.ask(study)["trials"]
        server.tell(study, {"trial": trial["id"], **item}, worker="broken")
    shown = server.http.get(f"/v1/studies/{study}").json()
    assert (shown["state"], shown["budget"]["used"]) == ("PAUSED", 5)
    assert "UnusableResult: the objective returned '0.5'" in shown["reason"]
    (found,) = server.http.get(f"/v1/studies/{study}/health").json()["items"]
    assert (found["code"], found["evidence"]["error_worker"]) == ("evaluations_fail", "broken")
    brief = server.http.get(f"/v1/studies/{study}/brief").text
    assert "health: evaluations_fail: the last 5 evaluations all failed" in brief
    assert brief.rstrip().endswith(f'next: curl -s -X POST http://testserver/v1/studies/{study}/resume -H "$A"')
    server.http.post(f"/v1/studies/{study}/resume")
    assert server.ask(study)["trials"]


def test_the_reason_that_is_told_with_a_failure_is_quoted(server: Server) -> None:
    study = server.create(budget={"evaluations": 100}, algorithm="random_search")
    for _ in range(15):
        (trial,) = server.ask(study)["trials"]
        server.tell(study, {"trial": trial["id"], "status": "failed", "reason": "disk full"})
    assert server.http.get(f"/v1/studies/{study}").json()["reason"].endswith("disk full")
    (found,) = server.http.get(f"/v1/studies/{study}/health").json()["items"]
    assert found["evidence"]["error_message"] == "disk full"


def test_text_that_is_told_for_a_number_is_rejected_item_by_item(server: Server) -> None:
    study = server.create()
    (trial,) = server.ask(study)["trials"]
    answer = server.http.post(f"/v1/studies/{study}/tell", json={"results": [{"trial": trial["id"], "value": "0.5"}]})
    assert answer.status_code == 422 or answer.json()["results"][0]["outcome"] == "rejected"
    assert server.http.get(f"/v1/studies/{study}").json()["budget"]["used"] == 0


def test_the_health_of_a_study_that_goes_well_has_no_items_and_its_brief_none(server: Server) -> None:
    study = server.create()
    assert server.http.get(f"/v1/studies/{study}/health").json() == {"items": []}
    assert "health" not in server.http.get(f"/v1/studies/{study}/brief").text


def test_the_text_for_agents_leads_to_health_and_to_the_point_to_deploy(server: Server) -> None:
    text = server.http.get("/llms.txt").text
    assert "/health" in text
    assert "view=recommended" in text
    assert server.http.get("/v1").json()["links"]["health"] == "/v1/studies/{study}/health"
