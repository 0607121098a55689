"""Why the store does not take a job or end one."""

from mova_engine.errors import MovaError


class IdempotencyConflict(MovaError):
    """The key was used for another request."""


class StoreRefusal(MovaError):
    """The store cannot do it now. retry_after_s: seconds after which to try again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFullError(StoreRefusal):
    """As many jobs wait as may wait."""


class QuotaError(StoreRefusal):
    """The owner has as many jobs as one may have at a time."""


class DiskFullError(StoreRefusal):
    """The disk of the store is full. Nothing that was accepted is lost."""


class StillStoppingError(StoreRefusal):
    """The job that is to be deleted has not stopped yet; it is deleted as soon as it has."""
