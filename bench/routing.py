"""The load balancing policies on simulated replicas: `python -m bench.routing`.

Groups of requests share a long prefix; each replica's cache holds the prefixes of some groups only.
`--replicas 1 2 4 8` asks how throughput and latency grow, at a rate that grows alike; `--plot FILE`
draws that. Replicas compute as fast as `--step-ms` and `--token-us` say: those of a measured table
make it a capacity plan for that machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from matplotlib.figure import Figure

from bench.results import write_result
from bench.simulated_fleet import Machine, Outcome, Workload, simulate
from bench.simulation import StepCost
from jaxsgl.config import BALANCING_POLICIES

GROUPS_PER_REPLICA = 16

type Outcomes = Mapping[str, Mapping[int, Outcome]]
"""By policy and number of replicas."""


def workload(num_replicas: int, rate: float) -> Workload:
    """As much for each replica, however many there are."""
    return Workload(num_groups=GROUPS_PER_REPLICA * num_replicas, rate=rate * num_replicas)


def plot(outcomes: Outcomes, path: str) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for policy, by_count in outcomes.items():
        counts = list(by_count)
        axes[0].plot(counts, [o.throughput for o in by_count.values()], marker="o", label=policy)
        axes[1].plot(counts, [o.ttft_p99_s for o in by_count.values()], marker="o", label=policy)
    for axis, label in zip(axes, ("generated tokens/s", "P99 to first token, s"), strict=True):
        axis.set(xlabel="replicas", ylabel=label, xscale="log", xticks=counts)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[4])
    parser.add_argument("--policies", nargs="+", default=list(BALANCING_POLICIES))
    parser.add_argument("--rate", type=float, default=3.0, help="requests/s for each replica")
    parser.add_argument("--pool-tokens", type=int, default=20 * 2176)
    parser.add_argument("--max-rows", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=512, help="of a step")
    parser.add_argument("--step-ms", type=float, default=10.0, help="of a step of no tokens")
    parser.add_argument("--token-us", type=float, default=100.0, help="more for each token")
    parser.add_argument("--plot", help="file that gets the figure")
    parser.add_argument("--output")
    args = parser.parse_args(argv)
    cost = StepCost(args.step_ms / 1e3, args.token_us / 1e6)
    machine = Machine(args.pool_tokens, args.max_rows, args.max_tokens, cost)
    outcomes: dict[str, dict[int, Outcome]] = {}
    print("policy         replicas  hit rate  max/min  tokens/s  TTFT P50, P99 (s)")
    for policy in args.policies:
        for count in args.replicas:
            outcome = simulate(policy, [machine] * count, workload(count, args.rate))
            outcomes.setdefault(policy, {})[count] = outcome
            print(
                f"{policy:14} {count:8}  {outcome.hit_rate:8.1%}  {outcome.imbalance:7.2f}  "
                f"{outcome.throughput:8.0f}  {outcome.ttft_p50_s:8.3f}  {outcome.ttft_p99_s:8.3f}",
                flush=True,
            )
    if args.plot:
        plot(outcomes, args.plot)
    summary = {
        policy: {f"{count} replicas": asdict(outcome) for count, outcome in by_count.items()}
        for policy, by_count in outcomes.items()
    }
    write_result(args.output, "routing", vars(args), summary)


if __name__ == "__main__":
    main()
