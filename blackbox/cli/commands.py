"""The commands. Each parses its arguments, calls the library, and prints a table."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.markup import escape
from rich.table import Column, Table

from blackbox.cli import database, local
from blackbox.cli.arguments import (
    Key,
    Url,
    failing_politely_over_http,
    find_study,
    load_objective,
)
from blackbox.cli.show import console, errors, failing_politely, progress, short
from blackbox.errors import InvalidInput

if TYPE_CHECKING:
    pass

app = typer.Typer(
    help="Gradient-free optimization: the service, its workers, and a solver for functions at hand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(database.app, name="db")


@app.command()
def demo(
    episodes: Annotated[int, typer.Option(min=20, help="Episodes for each of the two algorithms.")] = 240,
    seed: Annotated[int, typer.Option(help="Seed of both algorithms.")] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="Evaluate on a local Ray cluster.")] = False,
) -> None:
    """The main job: a physics simulator optimized over HTTP by two worker processes. Ends by itself."""
    from blackbox.cli.demo import run

    with failing_politely():
        run(console, episodes, seed, ray=ray)


@app.command(name="demo-federated")
def demo_federated(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each algorithm.")] = 8,
    participants: Annotated[int, typer.Option(min=2, max=10, help="Processes, each with digits of its own.")] = 5,
    noise: Annotated[float, typer.Option(min=0.0, help="Privacy: noise in units of the clip; 0: none.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of all algorithms and networks.")] = 1,
) -> None:
    """Federated rounds: five processes with private digits test their networks together. Ends by itself."""
    from blackbox.cli.demo_federated import run

    with failing_politely():
        run(console, rounds, participants, noise, seed)


@app.command()
def serve(
    host: Annotated[Optional[str], typer.Option(help="Address to listen on.")] = None,  # noqa: UP045
    port: Annotated[Optional[int], typer.Option(help="Port; 0 takes a free one.")] = None,  # noqa: UP045
    database: Annotated[Optional[str], typer.Option(help="Path of the SQLite file.")] = None,  # noqa: UP045
    insecure_local: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--insecure-local", help="No keys; only on a loopback address."),
    ] = None,
) -> None:
    """The service. Every other setting is a BLACKBOX_ variable; see server/README.md."""
    from blackbox_server.app import run
    from blackbox_server.settings import Settings

    given = {"host": host, "port": port, "database": database, "insecure_local": insecure_local}
    with failing_politely():
        run(Settings.from_env(**{name: value for name, value in given.items() if value is not None}))


@app.command()
def worker(
    study: Annotated[str, typer.Argument(help="Id of the study, such as st_8f3k; or its name, if the key may read.")],
    objective: Annotated[str, typer.Argument(help="module:function; gets a dict of parameters, returns a number.")],
    url: Url = None,
    key: Key = None,
    name: Annotated[Optional[str], typer.Option(help="Name of this worker; default: host and process.")] = None,  # noqa: UP045
    concurrency: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Evaluations at a time, each in a process of its own; default: 1, on Ray what fits."),
    ] = None,
    encoding: Annotated[str, typer.Option(help="values, or seed: large vectors travel as recipes.")] = "values",
    timeout_seconds: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.001, help="Kill an evaluation that takes longer, and tell its trial as failed for good."),
    ] = None,
    grace_seconds: Annotated[
        float, typer.Option(min=0.0, help="How long evaluations may go on after SIGTERM before they are released.")
    ] = 8.0,
    ray: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Evaluate on a Ray cluster: host:port or auto; local starts one on this machine."),
    ] = None,
    cpus: Annotated[float, typer.Option(min=0, help="Cores that an evaluation on Ray asks for.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs that an evaluation on Ray asks for.")] = 0.0,
    ship: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder to send to the nodes of the cluster, where they find the objective's module."),
    ] = None,
) -> None:
    """Evaluate a study until it ends. SIGTERM finishes what is in hand and leaves; a second one leaves at once."""
    from blackbox_client import Client, Worker

    if ray is not None:
        if timeout_seconds is not None:
            with failing_politely():
                raise InvalidInput(
                    "--timeout-seconds kills processes of this worker, and on Ray there are none",
                    hint="leave out --ray, or let the objective end by itself",
                )
        summary = _work_on_ray(study, objective, url, key, name, concurrency, encoding, ray, cpus, gpus, ship)
    else:
        with failing_politely():
            function = load_objective(objective)
        with failing_politely_over_http(), Client(url, key) as client:
            summary = Worker(
                find_study(client, study),
                function,
                name=name,
                concurrency=concurrency or 1,
                encoding="seed" if encoding == "seed" else "values",
                executor="process" if (concurrency or 1) > 1 else None,
                timeout_seconds=timeout_seconds,
                grace_seconds=grace_seconds,
            ).run()
    console.print(
        f"{summary.evaluated} evaluated, {summary.applied} applied, {summary.late} late, {summary.failed} failed, "
        f"{summary.seconds:.1f} s, ended: {summary.ended}"
    )


def _work_on_ray(
    study: str,
    objective: str,
    url: str | None,
    key: str | None,
    name: str | None,
    concurrency: int | None,
    encoding: str,
    address: str,
    cpus: float,
    gpus: float,
    ship: Path | None,
) -> Any:
    from blackbox_client import Client
    from blackbox_client.errors import Forbidden

    from blackbox.backends.ray_cluster import Fleet
    from blackbox.cli import fleet

    with failing_politely_over_http(), Client(url, key) as client:
        found = find_study(client, study)
        with suppress(Forbidden):  # the key of a worker need not read
            found.refresh()  # before a cluster is joined for nothing
        study = found.id
        with (
            failing_politely(),
            closing(
                Fleet(
                    objective,
                    concurrency or (None if cpus or gpus else 1),
                    address=None if address == "local" else address,
                    num_cpus=cpus,
                    num_gpus=gpus,
                    runtime_env=None if ship is None else {"working_dir": str(ship)},
                )
            ) as actors,
        ):
            return fleet.work(
                client, study, actors, name=name, concurrency=actors.capacity, seed_encoded=encoding == "seed"
            )


@app.command()
def participant(
    study: Annotated[str, typer.Argument(help="Id of a federated study, such as st_8f3k.")],
    objective: Annotated[str, typer.Argument(help="module:function; gets a dict of parameters, returns a number.")],
    client: Annotated[str, typer.Option(help="Name of this participant, the same after a restart.")],
    weight: Annotated[
        float, typer.Option(help="Share in means, such as the number of examples; the service sees it.")
    ] = 1.0,
    folder: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Where secret and private state are kept for a restart; default: nowhere."),
    ] = None,
    hosted: Annotated[
        bool,
        typer.Option("--hosted", help="Only evaluate: the service runs the algorithm, and sees points and values."),
    ] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Take part in federated rounds until they end; values and data stay here. SIGTERM stops soon and leaves."""
    from blackbox_client import Client

    with failing_politely():
        if hosted and folder is not None:
            raise InvalidInput("--folder keeps a private state; with --hosted the service does", hint="leave it out")
        function = load_objective(objective)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if hosted:
        _evaluate_for_a_host(study, function, client, weight, url, key, stop)
        return
    from blackbox_client.participant import Participant

    with failing_politely_over_http(), failing_politely(), Client(url, key) as connection:
        one = Participant(connection.study(study), function, client=client, weight=weight, folder=folder, stop=stop)
        taken = one.run()
        if stop.is_set():
            one.leave()
    console.print(
        f"{taken.contributions} contributions counted, {taken.late} late, {taken.declined} phases declined, "
        f"{taken.evaluations} evaluations, "
        f"{taken.sent_bytes} bytes sent, {taken.received_bytes} received, "
        f"ended: {'signal' if stop.is_set() else taken.state}"
    )
    if taken.declined and not taken.contributions:
        console.print(f"[red]no evaluation gave a value; the last error: {escape(taken.error)}[/red]")
        raise typer.Exit(1)


def _evaluate_for_a_host(
    study: str,
    function: Callable[[Any], Any],
    client: str,
    weight: float,
    url: str | None,
    key: str | None,
    stop: threading.Event,
) -> None:
    from blackbox_client import Client, Worker, protocol

    with failing_politely_over_http(), Client(url, key) as connection:
        joined = connection.send(protocol.host(study, client, weight))
        assert joined.hosted is not None, "asked for with `host`"
        place = joined.hosted.study
        console.print(f"{client} is hosted in {place}; `blackbox worker {place} ...` evaluates for it, too")
        worker = Worker(connection.study(place), function)

        def end() -> None:
            stop.wait()
            worker.stop()

        threading.Thread(target=end, daemon=True).start()
        summary = worker.run()
        if summary.ended == "stopped":
            connection.send(protocol.leave(study, joined.token))
    console.print(
        f"{summary.evaluated} evaluated, {summary.applied} applied, {summary.late} late, {summary.failed} failed, "
        f"{summary.seconds:.1f} s, ended: {summary.ended}"
    )
    if 0 < summary.evaluated == summary.failed:
        console.print("[red]no evaluation gave a value[/red]")
        raise typer.Exit(1)


@app.command()
def studies(
    url: Url = None,
    key: Key = None,
    brief: Annotated[Optional[str], typer.Option(help="Id of one study to describe.")] = None,  # noqa: UP045
) -> None:
    """The studies of a service."""
    from blackbox_client import Client, RetryPolicy

    patience = RetryPolicy(give_up_seconds=2.0)  # a person waits for this
    with failing_politely_over_http(), Client(url, key, retry=patience) as client:
        if brief is not None:
            console.print(client.study(brief).brief(), highlight=False, soft_wrap=True)
            return
        table, warnings = Table(Column("id", no_wrap=True, min_width=22), "name", "state", "algorithm"), list[str]()
        for number in ("used", "leased", "budget"):
            table.add_column(number)
        for study in client.studies():
            budget = study.budget
            limit = "" if budget.evaluations is None else str(budget.evaluations)
            algorithm = study.algorithm.resolved
            table.add_row(study.id, study.name, study.state, algorithm, str(budget.used), str(budget.leased), limit)
            warnings += [f"{study.id}: {warning}" for warning in study.warnings]
        console.print(table)
        for warning in warnings:
            errors.print(f"[yellow]{warning}[/]", highlight=False, soft_wrap=True)


@app.command()
def health(
    study: Annotated[str, typer.Argument(help="Id or name of a study.")], url: Url = None, key: Key = None
) -> None:
    """What is wrong with a study, and what to do. Exit code 1 if something is."""
    from blackbox_client import Client, RetryPolicy

    with failing_politely_over_http(), Client(url, key, retry=RetryPolicy(give_up_seconds=2.0)) as client:
        items = find_study(client, study).health()
    for item in items:
        evidence = ", ".join(f"{name}={value}" for name, value in item.evidence.items())
        console.print(f"{item.code}: {item.sentence}", highlight=False, soft_wrap=True)
        console.print(f"  {evidence}", highlight=False, soft_wrap=True)
        console.print(f"  -> {item.action}", highlight=False, soft_wrap=True)
    if items:
        raise typer.Exit(1)
    console.print("all is well", highlight=False)


@app.command()
def algorithms(
    name: Annotated[Optional[str], typer.Argument(help="One algorithm, with its options.")] = None,  # noqa: UP045
) -> None:
    """The registered algorithms."""
    from blackbox.algorithm import lookup, registry
    from blackbox.validation import descriptions

    with failing_politely():
        if name is None:
            table = Table("name", "kind", "encoding", "parameters", "largest d", "what it is")
            for each, cls in registry().items():
                traits = cls.traits
                first = (cls.__doc__ or "").strip().splitlines()[0]
                limit = "" if traits.max_dim is None else str(traits.max_dim)
                table.add_row(each, traits.kind, traits.encoding, ", ".join(sorted(traits.parameters)), limit, first)
            console.print(table)
            return
        cls = lookup(name)
        console.print((cls.__doc__ or "").strip(), highlight=False)
        table = Table("option", "type", "default", "meaning")
        for option, field in cls.Options.model_fields.items():
            default = "by problem" if field.default is None else short(field.default)
            kind = str(getattr(field.annotation, "__name__", field.annotation)).replace("typing.", "")
            table.add_row(option, kind, default, descriptions(cls.Options).get(option, ""))
        console.print(table)


@app.command()
def replay(
    study: Annotated[str, typer.Argument(help="Id of the study.")],
    database: Annotated[str, typer.Option(help="Path of the SQLite file; the service must not be running on it.")],
) -> None:
    """Replay a study's log and compare every state with the digest that was recorded."""
    from blackbox_server.store import SqlStore

    from blackbox.study.effects import perform
    from blackbox.study.kinds import open_study

    with failing_politely():
        if not Path(database).is_file():
            raise InvalidInput(f"there is no file {database}", hint="name the database that `blackbox serve` uses")
        store = SqlStore(database)
        try:
            opened = perform(store, open_study(study))
            total = perform(store, opened.row()).step
            began, bad, n = time.monotonic(), [], 0
            with progress(errors) as bars:
                task = bars.add_task("replay", total=total, best="")
                for note in opened.stored.notes(opened.resolved.algorithm):
                    errors.print(f"[yellow]{note}[/]", highlight=False, soft_wrap=True)
                for record, digest in perform(store, opened.replay()):
                    n += 1
                    if digest != record.digest:
                        bad.append(record.step)
                    bars.update(task, completed=n)
        finally:
            store.close()
    if bad and opened.stored.revised:
        errors.print(f"[red]the first {bad[0]} of {total} steps are equal, step {bad[0]} differs[/]")
        raise typer.Exit(1)
    if bad:
        errors.print(f"[red]{len(bad)} of {n} steps differ, the first is step {bad[0]}[/]")
        errors.print("equal bytes are promised on the machine and wheels that wrote the log; see blackbox/README.md")
        raise typer.Exit(1)
    console.print(f"{n} steps replayed in {time.monotonic() - began:.1f} s; every digest is equal")


app.command()(local.minimize)
