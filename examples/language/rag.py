"""Retrieval-augmented generation: passages are looked up, and questions answered from them.

Passages come before the question and in a fixed order, so that questions about the same passages
share them. What is looked up, here by common words, would be a search engine's work.
"""

import re

import jaxsgl as sgl

PASSAGES = (
    "The lighthouse of Cape Norr was built in 1871 from grey granite. It is 38 metres high; 203 "
    "steps lead to its lamp. Until 1962 a keeper lived there with his family; since then the lamp "
    "has been switched on by a clock. Ships see its light from a distance of 19 sea miles.",
    "The ferry from Norr to the island of Hella leaves at 8, 12 and 17 o'clock and takes 45 "
    "minutes. In winter the ferry at 17 o'clock does not run. A ticket costs 9 dollars, bicycles "
    "travel free. Cars are not allowed on the island, apart from that of the doctor.",
    "On Hella live 240 people and about 1,100 sheep. The island is known for its cheese, which is "
    "kept in caves for a year, and for the sweaters that are knitted from its wool. In June the "
    "island celebrates midsummer with a fire on the beach and a race of rowing boats.",
)
QUESTIONS = (
    "When was the lighthouse of Cape Norr built?",
    "How high is the lighthouse of Cape Norr?",
    "How many steps lead to the lamp of the lighthouse?",
    "From how far do ships see the light of the lighthouse?",
    "How long does the ferry from Norr to Hella take?",
    "What does a ticket of the ferry to Hella cost?",
    "Which ferry to Hella does not run in winter?",
    "Are cars allowed on the island of Hella?",
    "How many people live on the island of Hella?",
    "What is the island of Hella known for?",
    "Where is the cheese of the island kept?",
    "When does the island celebrate midsummer?",
)
NUM_PASSAGES = 2


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def look_up(question: str) -> list[str]:
    """The passages with the most words of the question, in the order of the collection."""
    common = [len(words(question) & words(passage)) for passage in PASSAGES]
    best = sorted(range(len(PASSAGES)), key=lambda number: -common[number])[:NUM_PASSAGES]
    return [PASSAGES[number] for number in sorted(best)]


@sgl.function
def answer(s, question):
    s += sgl.system("You answer questions from given passages only, in one short sentence.")
    passages = "\n\n".join(look_up(question))
    s += sgl.user(f"Passages:\n\n{passages}\n\nQuestion: {question}")
    s += sgl.assistant(sgl.gen("answer", max_tokens=24, stop="\n"))


def run(backend=None) -> list[str]:
    """The answers."""
    states = answer.run_batch(
        [(question,) for question in QUESTIONS], backend=backend, temperature=0
    )
    return [state["answer"] for state in states]


if __name__ == "__main__":
    for question, answered in zip(QUESTIONS, run(), strict=True):
        print(f"{question}\n  {answered}")
