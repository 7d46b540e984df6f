"""The worker: `evaluation` calls the objective, `leases` keeps what is held, `lanes` run side by side, `worker` loops.

`summary` counts what came of it all.
"""

from blackbox_client.worker.evaluation import Infeasible, evaluate
from blackbox_client.worker.leases import Evaluation
from blackbox_client.worker.summary import Summary
from blackbox_client.worker.worker import Worker

__all__ = ["Evaluation", "Infeasible", "Summary", "Worker", "evaluate"]
