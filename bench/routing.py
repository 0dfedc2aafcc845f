"""The load balancing policies on simulated replicas: `python -m bench.routing`.

Groups of requests share a long prefix; each replica's cache holds the prefixes of some groups only.
`--replicas 1 2 4 8` asks how throughput and latency grow, at a rate that grows alike; `--plot FILE`
draws that. Replicas compute as fast as `--step-ms`, `--token-us` and `--key-ns` say: those of a
measured table make it a capacity plan for that machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import cycle

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from bench.results import write_result
from bench.simulated_fleet import Machine, Outcome, Workload, simulate
from bench.simulation import StepCost
from jaxsgl.config import BALANCING_POLICIES

type Outcomes = Mapping[str, Mapping[int, Outcome]]
"""By policy and number of replicas."""


MARKERS = "os^vDPX"
"""Policies that do alike are told apart by more than their colours."""


def workload(num_replicas: int, args: argparse.Namespace) -> Workload:
    """As much for each replica, however many there are."""
    return Workload(
        num_groups=args.groups * num_replicas,
        group_size=args.group_size,
        shared_len=args.shared_len,
        own_len=args.own_len,
        answer_len=args.answer_len,
        rate=args.rate * num_replicas,
    )


def plot(outcomes: Outcomes, path: str) -> None:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for (policy, by_count), marker in zip(outcomes.items(), cycle(MARKERS)):
        counts = list(by_count)
        style = {"marker": marker, "label": policy, "alpha": 0.8}
        axes[0].plot(counts, [o.throughput for o in by_count.values()], **style)
        axes[1].plot(counts, [o.ttft_p99_s for o in by_count.values()], **style)
    for axis, label in zip(axes, ("generated tokens/s", "P99 to first token, s"), strict=True):
        axis.set(xlabel="replicas", ylabel=label, xscale="log", xticks=counts)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)
    axes[1].set_yscale("log")
    axes[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[1].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes[1].yaxis.set_minor_formatter(NullFormatter())
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
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
    parser.add_argument(
        "--key-ns", type=float, default=0.0, help="more for each key of a decode row"
    )
    parser.add_argument("--groups", type=int, default=16, help="for each replica")
    parser.add_argument("--group-size", type=int, default=16, help="requests")
    parser.add_argument("--shared-len", type=int, default=2048)
    parser.add_argument("--own-len", type=int, default=128)
    parser.add_argument("--answer-len", type=int, default=32)
    parser.add_argument("--plot", help="file that gets the figure")
    parser.add_argument("--output")
    args = parser.parse_args(argv)
    cost = StepCost(args.step_ms / 1e3, args.token_us / 1e6, per_key_s=args.key_ns / 1e9)
    machine = Machine(args.pool_tokens, args.max_rows, args.max_tokens, cost)
    outcomes: dict[str, dict[int, Outcome]] = {}
    print("policy         replicas  hit rate  max/min  tokens/s  TTFT P50, P99 (s)")
    for policy in args.policies:
        for count in args.replicas:
            outcome = simulate(policy, [machine] * count, workload(count, args))
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
