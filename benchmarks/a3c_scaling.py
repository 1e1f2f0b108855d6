"""Training speed of A3C on Pong against the number of its workers, learning included.

    python -m benchmarks.a3c_scaling                   # about five minutes
    python -m benchmarks.a3c_scaling --workers 1,2     # fewer sizes

Every worker has the same work, that of the preset pong_a3c: eight games, the same network, the same rollouts. So n
workers are n times as fast as one wherever each has a core to itself. Each size trains in a process of its own; sizes
take turns (1 2 3 4 4 3 2 1 ...), so that a machine that drifts drifts for all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

from benchmarks.speed import ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,3,4", help="numbers of workers")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a window")
    parser.add_argument("--rounds", type=int, default=3, help="windows per number of workers")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        size = [f"agent.num_workers={arguments.measure}", f"num_envs={8 * arguments.measure}"]
        print(json.dumps(ours(["experiment=pong_a3c", *size])(arguments.seconds)))
        return

    from benchmarks.record import write_result

    sizes = [int(size) for size in arguments.workers.split(",")]
    speeds: dict[int, list[float]] = {size: [] for size in sizes}
    for k in range(arguments.rounds):
        for size in sizes[:: 1 if k % 2 == 0 else -1]:
            command = [sys.executable, "-m", "benchmarks.a3c_scaling", "--measure", str(size)]
            answer = subprocess.run(
                [*command, "--seconds", str(arguments.seconds)], capture_output=True, text=True, check=True
            )
            speeds[size].append(json.loads(answer.stdout.splitlines()[-1])["env_steps_per_s"])
            print(f"round {k + 1}  {size} workers {speeds[size][-1]:8.1f} environment steps/s", flush=True)
    medians = {size: statistics.median(values) for size, values in speeds.items()}
    for size, values in speeds.items():
        ratio = medians[size] / medians[sizes[0]]
        print(f"{size} workers {medians[size]:8.1f}   [{min(values):.1f}, {max(values):.1f}]   {ratio:.2f}")
    path = write_result("a3c_scaling", {"env": "ALE/Pong-v5", "env_steps_per_s": speeds})
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
