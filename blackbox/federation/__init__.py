"""Federated optimization: a coordinator that never sees data, and participants that evaluate only their own objective.

Both are Moore machines without network, clock or waiting; a transport carries the payloads. One phase of a round::

    coordinator                                        participant
    -----------                                        -----------
    federation = build(name, space, options, key)
    state = federation.init()
    federation.invitation()        -- once -->         machine = accept(invitation, client=..., weight=..., secret=...)
                                                       own = machine.init()
    federation.broadcast(state)    -- phase -->        own = machine.start(own, broadcast)
                                                       while len(points := machine.ask(own)):
                                                           own = machine.tell(own, values of the points)
    federation.check(c)            <-- c --            c = machine.contribution(own)
    federation.admission(state, c.round, c.phase)      own = machine.settle(own, counted)
    ... federation.need(state, joined) are in, or the deadline has passed:
    state = federation.tell(state, contributions)
    state.update                   -- log -->          x, version = catch_up(x, version, updates, key, space)

`tell` closes the open phase with any subset of contributions, in any order; a round has one or two phases. `invited`
says which participants take part where that is random; `metrics`, `recommend` and `stopped` are as in `Algorithm`.

`ask` returns (k, d) internal points, row = lane, the same rows at every call; so a participant that cannot run this
machine can be hosted: somebody else runs it and hands its points out as ordinary trials (`study.hosting`).
"""

from blackbox.federation.coordinator import Client, Federation, FederationState
from blackbox.federation.method import accept, build, federated, lookup, registry, resolve_options
from blackbox.federation.options import FederationOptions, Phase, PrivacyOptions
from blackbox.federation.participant import Participant, Work
from blackbox.federation.payloads import (
    Broadcast,
    Contribution,
    ContributionJson,
    Invitation,
    Privacy,
    PrivacyJson,
    Update,
    apply,
    catch_up,
    project,
)
from blackbox.federation.simulate import Rehearsal, rehearse

__all__ = [
    "Broadcast",
    "Client",
    "Contribution",
    "ContributionJson",
    "Federation",
    "FederationOptions",
    "FederationState",
    "Invitation",
    "Participant",
    "Phase",
    "Privacy",
    "PrivacyJson",
    "PrivacyOptions",
    "Rehearsal",
    "Update",
    "Work",
    "accept",
    "apply",
    "build",
    "catch_up",
    "federated",
    "lookup",
    "project",
    "registry",
    "rehearse",
    "resolve_options",
]
