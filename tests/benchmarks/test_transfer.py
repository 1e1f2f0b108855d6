"""How the benchmark of transfer sums up its runs."""

from __future__ import annotations

import pytest

from benchmarks.transfer import saved, summary


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


def test_savings_are_those_of_pairs() -> None:
    def row(seed: int, env_steps: int) -> dict[str, object]:
        return {"seed": seed, "env_steps": env_steps, "success": [[9000, 0.9]]}

    scratch = [row(0, 5000), row(1, 7000), row(2, 9000)]
    found = saved([row(0, 4000), row(1, 5000), row(2, 6000)], scratch)
    assert found["saved_env_steps"] == 2000
    # 2000 -+ 4.3027 * 1000 / sqrt(3): Student's 0.975 quantile with two degrees of freedom.
    assert found["saved_ci95"] == pytest.approx([-484.1, 4484.1], abs=0.1)
