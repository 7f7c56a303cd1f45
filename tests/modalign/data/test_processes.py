"""Work in processes: every job has its outcome, whatever the others do."""

from __future__ import annotations

import pytest

from modalign.data.processes import DIED, outcomes
from tests.modalign.data.labour import labour


@pytest.mark.parametrize("workers", [0, 2])
def test_every_job_has_its_outcome(workers):
    jobs = ["a", "bad", "b", "c", "d", "e"]
    found = dict(outcomes(labour, jobs, workers))
    assert found == {job: "it is bad" if job == "bad" else None for job in jobs}


def test_a_job_that_kills_its_process_is_named_and_no_other_is_lost():
    jobs = ["a", "b", "kill", "c", "bad", "d", "e", "f"]
    found = list(outcomes(labour, jobs, 2))
    assert sorted(job for job, _ in found) == sorted(jobs)
    assert dict(found) == dict.fromkeys(jobs) | {"kill": DIED, "bad": "it is bad"}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_work_itself_stops_all(workers):
    with pytest.raises(OSError, match="disk full"):
        list(outcomes(labour, ["a", "raise", "b"], workers))
