"""The worker: `evaluation` calls the objective, `leases` renews leases, `lanes` run in parallel, `worker` is the loop.

`summary` counts the results.
"""

from blackbox_client.worker.evaluation import Infeasible, evaluate
from blackbox_client.worker.leases import Evaluation
from blackbox_client.worker.summary import Summary
from blackbox_client.worker.worker import Worker

__all__ = ["Evaluation", "Infeasible", "Summary", "Worker", "evaluate"]
