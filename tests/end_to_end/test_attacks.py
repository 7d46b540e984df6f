"""Attacks on a server of our own, bounded and on loopback: each is refused, and what others see is unharmed."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest

from tests.end_to_end.attacks import BODIES, Target, content, status
from tests.end_to_end.service import Service

VARIABLES = {
    "BLACKBOX_HEAD_SECONDS": "0.3",
    "BLACKBOX_BODY_SECONDS": "0.3",
    "BLACKBOX_MAX_CONNECTIONS_PER_ADDRESS": "20",
    "BLACKBOX_FAILED_KEYS_PER_MINUTE": "5",
}
SPACE = {"x": {"type": "float", "low": -5, "high": 5}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server with keys, little patience and few connections."""
    with Service(tmp_path_factory.mktemp("attacked"), keys=True, variables=VARIABLES) as started:
        yield started.start()


@pytest.fixture(scope="module")
def target(service: Service) -> Target:
    """The server with a study and a key."""
    assert service.key is not None
    with httpx.Client(base_url=service.url, headers={"authorization": f"Bearer {service.key}"}) as client:
        made = client.post("/v1/studies", json={"name": "attacked", "space": SPACE, "algorithm": "random_search"})
        scopes = ["study:admin", "study:read", "study:evaluate"]
        key = client.post("/v1/keys", json={"scopes": scopes}).json()["key"]
    made_target = Target(service.port, made.json()["id"], key)
    assert status(made_target.send(made_target.head("GET", "/v1/studies"))) == 200  # it is known from now on
    return made_target


@pytest.fixture(autouse=True)
def _is_well_after_every_attack(service: Service) -> Iterator[None]:
    """After every attack the server is the same process, and answers."""
    pid = service.process.pid
    yield
    for _ in range(100):  # connections of the attack are closed one after the other
        with suppress(httpx.TransportError):
            if httpx.get(f"{service.url}/healthz").status_code == 200:
                break
        time.sleep(0.02)
    else:
        pytest.fail("it does not answer")
    assert service.process.running
    assert service.process.pid == pid


def ended(connection: socket.socket) -> bytes:
    """What came before the server closed the connection."""
    received = b""
    connection.settimeout(20.0)
    with suppress(ConnectionError):
        while part := connection.recv(65_536):
            received += part
    return received


def _send_for(connection: socket.socket, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        connection.sendall(b"G")
        time.sleep(0.02)


def answers(connection: socket.socket, n: int) -> bytes:
    """The next n answers, all of which end with the bracket of an object."""
    received = b""
    while received.count(b"HTTP/1.1 ") < n or not received.endswith(b"}"):
        part = connection.recv(65_536)
        assert part, received
        received += part
    return received


# Before a key ---------------------------------------------------------------------------------------------------------


def test_a_head_without_end_is_cut(target: Target) -> None:
    sent = 0
    with target.connect() as connection, suppress(ConnectionError):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")
        while sent < 64 * 2**20:
            connection.sendall(b"a" * 65_536)
            sent += 65_536
    assert sent < 64 * 2**20


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /healthz?" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"".join(b"X%d: 1\r\n" % i for i in range(101)) + b"\r\n",
        b"\r\n" * 20_000,
    ],
    ids=["header", "address", "headers", "nothing"],
)
def test_a_head_that_is_too_large_is_answered_431(target: Target, head: bytes) -> None:
    answer = target.send(head)
    assert (status(answer), content(answer)["code"]) == (431, "head-too-large")


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: loc", b"\r\n"], ids=["nothing", "half", "empty"]
)
def test_a_head_that_does_not_come_is_answered_408_and_closed(target: Target, sent: bytes) -> None:
    with target.connect() as connection:
        connection.sendall(sent)
        answer = ended(connection)
    assert (status(answer), content(answer)["code"]) == (408, "head-timeout")


def test_a_head_that_comes_by_single_bytes_has_no_more_time(target: Target) -> None:
    sent = 0
    with target.connect() as connection, suppress(ConnectionError):
        connection.sendall(b"GET /")
        while sent < 4000:
            connection.sendall(b"a")
            sent += 1
            time.sleep(0.005)
    assert sent < 4000


def test_a_connection_that_is_used_lives_longer_than_a_head_may_take(target: Target) -> None:
    with target.connect() as connection:
        for _ in range(5):
            connection.sendall(target.head("GET", "/healthz"))
            assert status(answers(connection, 1)) == 200
            time.sleep(0.1)  # half a second in all; a head may take 0.3 s


def test_an_address_has_so_many_connections_and_gets_them_back(service: Service, target: Target) -> None:
    with ExitStack() as opened:
        connections = [opened.enter_context(target.connect()) for _ in range(30)]
        answers = [ended(connection) for connection in connections]
    codes = [content(answer)["code"] for answer in answers]
    assert codes.count("rate-limited") >= 10
    assert codes.count("head-timeout") == 30 - codes.count("rate-limited")


def test_requests_without_end_ahead_of_their_answers_are_cut(target: Target) -> None:
    sent = 0
    with target.connect() as connection, suppress(OSError):
        connection.settimeout(5.0)
        while sent < 500_000:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
            sent += 1000
    assert sent < 500_000


def test_a_few_requests_ahead_of_their_answers_are_answered_in_order(target: Target) -> None:
    requests = [target.head("GET", path) for path in ("/healthz", "/nowhere", "/readyz")]
    with target.connect() as connection:
        connection.sendall(b"".join(requests))
        answer = answers(connection, 3)
    assert [part[1:4] for part in answer.split(b"HTTP/1.1")[1:4]] == [b"200", b"404", b"200"]


def test_an_answer_that_nobody_takes_is_given_up(target: Target) -> None:
    with target.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with suppress(ConnectionError):
            for _ in range(32):
                connection.sendall(target.head("GET", "/openapi.json"))
        with pytest.raises(ConnectionError):
            _send_for(connection, 20.0)


def test_unknown_keys_of_an_address_are_soon_not_looked_at(target: Target) -> None:
    wrong = Target(target.port, "", "zok_" + "a" * 8 + "_" + "b" * 43)
    codes = [status(wrong.send(wrong.head("GET", "/v1/studies"))) for _ in range(8)]
    assert codes == [401] * 5 + [429] * 3
    assert status(target.send(target.head("GET", "/v1/studies"))) == 200


# Bodies ---------------------------------------------------------------------------------------------------------------


def test_a_body_that_is_cut_short_is_not_executed(target: Target) -> None:
    path = f"/v1/studies/{target.study}"
    trial = target.post(f"{path}/ask", b"{}")[1]["trials"][0]["id"]  # type: ignore[index]
    body = b'{"trial":"%b","value":1}' % trial.encode()
    for headers in ({"Content-Length": 500}, {"Transfer-Encoding": "chunked"}):
        chunk = body if "Content-Length" in headers else b"%x\r\n%b\r\n" % (len(body), body)
        with target.connect() as connection:
            connection.sendall(target.head("POST", f"{path}/tell", headers) + chunk)
    time.sleep(0.2)
    assert content(target.send(target.head("GET", f"{path}/trials/{trial}")))["state"] == "LEASED"
    assert target.post(f"{path}/tell", body)[1]["applied"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"{"], ids=["nothing", "half"])
def test_a_body_that_does_not_come_is_answered_408_and_closed(target: Target, sent: bytes) -> None:
    with target.connect() as connection:
        connection.sendall(target.head("POST", f"/v1/studies/{target.study}/ask", {"Content-Length": 500}) + sent)
        answer = ended(connection)
    assert (status(answer), content(answer)["code"]) == (408, "body-timeout")


@pytest.mark.slow
def test_a_body_that_nobody_reads_does_not_keep_its_connection(target: Target) -> None:
    with target.connect() as connection:
        connection.sendall(target.head("POST", "/nowhere", {"Content-Length": 500}) + b"{")
        assert status(ended(connection)) == 404


def test_trailers_without_end_are_cut(target: Target) -> None:
    chunked = target.head("POST", f"/v1/studies/{target.study}/ask", {"Transfer-Encoding": "chunked"})
    with target.connect() as connection, suppress(ConnectionError):
        connection.sendall(chunked + b"2\r\n{}\r\n0\r\nX: ")
        for _ in range(1000):
            connection.sendall(b"a" * 65_536)
        pytest.fail("all was taken")


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_asks_for_much_work_is_answered(target: Target, name: str) -> None:
    attack = BODIES[name]
    path = f"/v1/studies/{target.study}/{attack.path}" if attack.path else "/v1/studies"
    code, answer = target.post(path, attack.content())
    assert code in attack.status, answer
