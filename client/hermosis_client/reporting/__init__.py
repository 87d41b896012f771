"""Reporting: the readings of a session, where experiments are kept.

    from hermosis_client.reporting import report
    from hermosis_client.reporting.tensorboard import TensorBoardReporter

    with report(session, to=TensorBoardReporter("runs/first")):
        ...  # train

`mlflow.MLflowReporter` and `wandb.WandbReporter` are its neighbours. Each imports its library when it is made, and says
what to install where that is missing.
"""

from hermosis_client.reporting.report import Report, report
from hermosis_client.reporting.scalars import Reporter, scalars

__all__ = ["Report", "Reporter", "report", "scalars"]
