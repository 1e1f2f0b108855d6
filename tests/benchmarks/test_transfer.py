"""How the benchmark of transfer sums up its runs."""

from __future__ import annotations

from benchmarks.transfer import summary


def test_runs_that_never_get_there_count_as_their_whole_length_and_apart() -> None:
    rows = [
        {"seed": 0, "env_steps": 2000, "success": [[1000, 0.5], [2000, 0.9], [3000, 0.7]], "cpu_s": 5.0},
        {"seed": 1, "env_steps": None, "success": [[1000, 0.0], [2000, 0.1], [3000, 0.3]], "cpu_s": 7.0},
    ]
    found = summary(rows)
    assert found["mean_env_steps"] == 2500
    assert (found["seeds"], found["reached"]) == (2, 1)
    assert found["mean_final_success"] == 0.5
    assert found["ci95"] == [2000, 3000]
