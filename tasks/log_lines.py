"""The engine's own log lines about a step, reworded to match the other lines on a run's page.

Prefect logs an exception as its repr and a traceback, a repeated poll as a failure, and each end of a
task once more. A foreseen error is reduced to its message; an unforeseen one keeps its traceback.
"""

import logging
import re

from a0backup.errors import A0BackupError, BackupInProgressError
from a0backup.report.words import human_seconds

_AGAIN = "Task run failed with %s: %r - Retry %s/%s will start %s"
_FAILED = "Task run failed with exception: "
_FLOW_FAILED = "Encountered exception during execution: "
_CALLED_OFF = (
    "Crash detected! Execution was cancelled by the runtime environment.",
    "Crash detected! Execution was aborted by a termination signal.",
)
# Each repeats the line before it.
_REPEATS = ("Finished in state ", "Task run failed with state: ")
_REPEATS_OF_FLOW = ('Finished in state Failed("Flow run encountered an exception', "Finished in state Running(")


class Readable(logging.Filter):
    """Reword Prefect's lines about foreseen errors, and drop those that repeat another line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record at all; its text may have been changed."""
        text = str(record.msg)
        of_flow = record.name == "prefect.flow_runs"
        if text == _AGAIN and isinstance(record.args, tuple) and len(record.args) == 5:
            _tell_of_a_retry(record, *record.args)
        elif text.startswith((_FAILED, _FLOW_FAILED)):
            _tell_of_a_failure(record, of_flow=of_flow)
        elif text in _CALLED_OFF and not of_flow:
            record.msg = f"{getattr(record, 'task_run_name', 'a step')}: cancelled"
            _make_warning(record)
        return not text.startswith(_REPEATS_OF_FLOW if of_flow else _REPEATS)


def _tell_of_a_retry(
    record: logging.LogRecord, _: object, error: object, retry: object, retries: object, when: object
) -> None:
    if not isinstance(error, A0BackupError):
        return
    seconds = re.match(r"[\d.]+(?= second)", str(when))
    pause = f"in {human_seconds(float(seconds[0]))}" if seconds else "now"
    if isinstance(error, BackupInProgressError):
        record.msg, record.args = "%s; checking again %s", (error.message(), pause)
    else:
        record.msg, record.args = "%s; retrying %s (%s of %s)", (error.message(), pause, retry, retries)


def _tell_of_a_failure(record: logging.LogRecord, *, of_flow: bool) -> None:
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, A0BackupError):
        return
    record.exc_info = None
    if of_flow:
        record.msg, record.args = "%s", (error,)
    else:
        # Its consequence and the hint are logged where it is known whether the node's backup failed because of it.
        record.msg, record.args = "%s", (error.message(),)
        _make_warning(record)


def _make_warning(record: logging.LogRecord) -> None:
    record.levelno, record.levelname = logging.WARNING, "WARNING"


def install() -> None:
    """Install the filter on Prefect's loggers of flow runs and task runs in this process, once."""
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(known, Readable) for known in logger.filters):
            logger.addFilter(Readable())
