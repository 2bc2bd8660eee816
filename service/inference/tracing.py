"""The trace that the work at hand belongs to, so that an adapter can pass it on without every port naming it.

Spans are not made here. A batch holds several requests and can carry one trace only: that of the first in it.
"""

from contextvars import ContextVar

TRACEPARENT: ContextVar[str | None] = ContextVar("handpose_traceparent", default=None)
"""W3C `traceparent` of the request, or of the batch's first request; None outside any trace."""
