"""Evaluate on a Ray cluster: one actor per resource request, on this machine or on many.

Every actor has one call in hand and, where evaluations are short and the open step can use it, one more waiting behind
it, each with several points: so they do not pay for the way to the driver. Large candidates travel as recipes: the base
vector is put once, each node fetches it once, actors build their points from it. Actors that are lost with their node,
and nodes that join, are noticed within a second or so; what a lost actor had in hand comes back as a `WorkerLost`.

Ray is imported by `session` alone, and only when somebody asks for it. Whoever can reach a Ray cluster's ports can run
code on it: a cluster that is started here listens on the loopback interface only, has no dashboard, and a token of its
own; a cluster that is joined must use token authentication too (RAY_AUTH_MODE=disabled, set on purpose, overrides
that).

`session` starts or joins a cluster; `actors` is what runs there; `backend` evaluates a study in process, `fleet` one of
a remote service; `parts` computes pieces of large updates.
"""

from blackbox.backends.ray_cluster.actors import Placement
from blackbox.backends.ray_cluster.backend import RayBackend
from blackbox.backends.ray_cluster.fleet import Fleet
from blackbox.backends.ray_cluster.parts import RaySlices
from blackbox.backends.ray_cluster.session import ClusterUnreachable, Session

__all__ = ["ClusterUnreachable", "Fleet", "Placement", "RayBackend", "RaySlices", "Session"]
