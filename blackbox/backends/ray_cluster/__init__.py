"""Evaluate on a Ray cluster: one actor per resource request, on this machine or on many.

Every actor works on one call and, if evaluations are short and the open step needs them, has one more queued, each with
several points: this hides the round trip to the driver. Large candidates are sent as recipes: the base vector is put
into the object store once, each node fetches it once, and actors build their points from it. Actors lost with their
node, and nodes that join, are noticed within about a second; the points of a lost actor come back as `WorkerLost`.

Ray is imported by `session` only, on first use. Anybody who can reach a Ray cluster's ports can run code on it: a
cluster that is started here listens on the loopback interface only, has no dashboard, and a token of its own; a cluster
that is joined must use token authentication too (RAY_AUTH_MODE=disabled, set on purpose, overrides that).

`session` starts or joins a cluster; `actors` has the actors and their factory; `backend` evaluates an in-process study,
`fleet` one of a remote service; `parts` computes parts of large updates.
"""

from blackbox.backends.ray_cluster.actors import Placement
from blackbox.backends.ray_cluster.backend import RayBackend
from blackbox.backends.ray_cluster.fleet import Fleet
from blackbox.backends.ray_cluster.parts import RaySlices
from blackbox.backends.ray_cluster.session import ClusterUnreachable, Session

__all__ = ["ClusterUnreachable", "Fleet", "Placement", "RayBackend", "RaySlices", "Session"]
