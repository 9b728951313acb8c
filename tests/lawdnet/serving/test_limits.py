from __future__ import annotations

import pickle
import sqlite3

import pytest

from lawdnet.serving.limits import Limits, RateLimit
from lawdnet.serving.problems import Problem
from lawdnet.types import Rejected, RejectReason


def test_a_burst_and_then_the_rate() -> None:
    rate = RateLimit(60)
    assert [rate.wait("a", 0.0) for _ in range(6)] == [0.0] * 6
    assert rate.wait("a", 0.0) == pytest.approx(1.0)
    assert rate.wait("b", 0.0) == 0
    assert rate.wait("a", 1.01) == 0
    assert rate.wait("a", 1.01) > 0


def test_many_clients_take_bounded_memory() -> None:
    rate = RateLimit(1)
    for client in range(30_000):
        rate.wait(str(client), client / 1000)
    assert len(rate._buckets) <= RateLimit.MAX_CLIENTS + 1


def test_a_limit_is_positive() -> None:
    with pytest.raises(ValueError, match="queue: 0 must be more than 0"):
        Limits(queue=0)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Problem(409, "x", "y"), 409, "x"),
        (Rejected(RejectReason.NO_FACE, "none"), 422, "no_face"),
        (OSError(28, "No space left on device"), 507, "disk_full"),
        (sqlite3.OperationalError("database or disk is full"), 507, "disk_full"),
        (RuntimeError("/secret/path"), 500, "internal_error"),
        (ValueError("/secret/path"), 500, "internal_error"),
    ],
)
def test_every_exception_is_a_problem_document(error: Exception, status: int, kind: str) -> None:
    document = Problem.of(error).document
    assert (document["status"], document["kind"]) == (status, kind)
    assert document["type"] == f"/problems#{kind}"
    assert document["title"]
    assert "secret" not in str(document)


def test_problems_travel_between_processes() -> None:
    found = pickle.loads(pickle.dumps(Problem(503, "queue_full", "later", retry_after=3)))
    assert (found.status, found.kind, found.detail, found.retry_after) == (503, "queue_full", "later", 3)


def test_details_are_one_printable_line() -> None:
    assert Problem(400, "x", "a\nb\x1b[31m\udcff").document["detail"] == "a b?[31m\\udcff"
