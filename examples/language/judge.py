"""A judge: one essay, marked in five dimensions beside each other, then summed up.

The essay is read once, however many dimensions there are.
"""

import jaxsgl as sgl

ESSAY = """Bees are small, but without them many of our meals would look different. A bee that
visits a flower for nectar carries pollen on its hairs to the next flower, and that is how apples,
almonds, pumpkins and many other plants make fruit. Farmers know this and rent hives in
spring: trucks bring them to the orchards at night, when the bees are at home.
In the last decades beekeepers have lost more hives than before. There is not one reason.
Mites weaken the young bees and carry viruses. Some poisons against other insects make bees
lose their way. Where fields are large and all alike, there is plenty to eat for two weeks
and nothing for the rest of the year. Each of these can be borne alone; together they are
too much for a hive that has also had a cold winter.
What helps is not hard to understand. Strips of wild flowers along the fields feed bees from
March to October. Poisons can be sprayed in the evening, when no bee is out. Beekeepers who
look for mites every month can act before it is too late. And everyone who has a garden, or
only a balcony, can let something bloom there that is good for more than looking at. If we
do these things, bees will go on doing theirs, and we will hardly notice how much we owe them."""
DIMENSIONS = {
    "clarity": "how easily the text is understood",
    "structure": "how well its parts follow from each other",
    "evidence": "how well its claims are supported",
    "style": "how pleasant it is to read",
    "originality": "how new its thoughts are",
}


@sgl.function
def judge(s, essay):
    s += sgl.system("You judge essays of pupils. You are fair, brief and specific.")
    s += sgl.user(f"Here is an essay.\n\n{essay}\n\nI will ask you about one quality of it.")
    s += sgl.assistant("I have read it.")
    forks = s.fork(len(DIMENSIONS))
    forks += [
        sgl.user(f"Speak about {name}: {meaning}. One sentence.")
        for name, meaning in DIMENSIONS.items()
    ]
    forks += sgl.assistant(sgl.gen("remark", max_tokens=32, stop="\n"))
    forks += sgl.user("What mark do you give for it, from 1 to 5?")
    forks += sgl.assistant("My mark is " + sgl.gen("mark", choices=["1", "2", "3", "4", "5"]))
    forks.join()
    remarks = zip(DIMENSIONS, s["mark"], s["remark"], strict=True)
    marks = "\n".join(f"{name}: {mark}. {remark.strip()}" for name, mark, remark in remarks)
    s += sgl.user(f"These are the marks:\n{marks}\nSum them up in one sentence.")
    s += sgl.assistant(sgl.gen("summary", max_tokens=40, stop="\n"))


def run(backend=None) -> list[str]:
    """The marks, one per dimension, and the summary."""
    state = judge.run(essay=ESSAY, backend=backend, temperature=0)
    return [*state["mark"], state["summary"]]


if __name__ == "__main__":
    *marks, summary = run()
    print(", ".join(f"{name} {mark}" for name, mark in zip(DIMENSIONS, marks, strict=True)))
    print(summary)
