"""Tree of thought: three plans, three ways to carry out each, and a vote among what comes out.

Every fork shares the text up to it with its siblings.
"""

from collections import Counter

import jaxsgl as sgl

PROBLEM = (
    "A baker sells bread for 3 dollars a loaf and cake for 12 dollars each. On Monday he sells 14 "
    "loaves and 5 cakes. On Tuesday he sells twice as many loaves and one cake less. Flour, butter "
    "and sugar cost him 37 dollars on each of the two days, and a helper who comes on Tuesday only "
    "gets 25 dollars. The oven burns gas for 6 dollars a day. How much does he earn in both days "
    "together, when everything that he pays is taken away from everything that he gets?"
)
WIDTH = 3


@sgl.function
def solve(s, problem):
    s += sgl.system(
        "You are a careful teacher of arithmetic. You plan before you calculate, you write every "
        "step on a line of its own, and you check units and signs before you state a result."
    )
    s += sgl.user(f"{problem}\nGive a plan in one sentence. Do not calculate yet.")
    plans = s.fork(WIDTH)
    plans += lambda n: sgl.assistant(sgl.gen("plan", max_tokens=40, temperature=0.8, seed=n))
    plans += sgl.user("Now follow the plan, step by step.")
    votes = Counter()
    ways = [plan.fork(WIDTH) for plan in plans]
    for first, group in enumerate(ways):
        group += lambda n, first=first: sgl.assistant(
            sgl.gen("steps", max_tokens=48, temperature=0.8, seed=10 * first + n)
        )
        group += sgl.user("So how many dollars does he earn? Say the number alone.")
        group += sgl.assistant(sgl.gen_int("result", temperature=0, max_tokens=8))
    for group in ways:
        votes.update(way["result"] for way in group)
    s["votes"] = dict(votes)
    # Of equal numbers of votes the smaller result, so that it does not depend on who was first.
    s["result"] = min(votes, key=lambda result: (-votes[result], result))


def run(backend=None) -> list[str]:
    """What won, and the votes."""
    state = solve.run(problem=PROBLEM, backend=backend)
    return [str(state["result"]), str(sorted(state["votes"].items()))]


if __name__ == "__main__":
    result, votes = run()
    print(f"{result}, by these votes: {votes}")
