"""Few-shot question answering: many questions behind the same worked examples.

The examples are computed once; every later question finds them in the cache.
"""

import jaxsgl as sgl

EXAMPLES = (
    ("What is the capital of Portugal?", "Lisbon"),
    ("Which planet is closest to the sun?", "Mercury"),
    ("Who wrote the play Romeo and Juliet?", "William Shakespeare"),
    ("What is the chemical symbol of gold?", "Au"),
    ("How many legs does a spider have?", "Eight"),
    ("In which ocean do the islands of Hawaii lie?", "The Pacific Ocean"),
    ("What is the boiling point of water in degrees Celsius?", "100"),
    ("Which animal is the largest that has ever lived?", "The blue whale"),
    ("Who painted the ceiling of the Sistine Chapel?", "Michelangelo"),
    ("What is the square root of eighty-one?", "Nine"),
    ("Which gas do plants take from the air?", "Carbon dioxide"),
    ("On which continent does the river Nile flow?", "Africa"),
)
QUESTIONS = (
    "What is the capital of France?",
    "What is the largest planet of the solar system?",
    "Which language do people speak in Brazil?",
    "How many days does a week have?",
    "What is the chemical symbol of oxygen?",
    "On which continent does Japan lie?",
    "Who wrote the play Hamlet?",
    "What is the capital of Italy?",
    "How many months does a year have?",
    "Which metal is liquid at room temperature?",
    "What is the capital of Spain?",
    "Which animal gives us wool?",
    "What is the colour of a ripe banana?",
    "How many wheels does a bicycle have?",
    "What is the capital of Egypt?",
    "Which ocean lies between Europe and America?",
)


@sgl.function
def answer(s, question):
    s += "Answer each question in a few words.\n\n"
    for asked, answered in EXAMPLES:
        s += f"Question: {asked}\nAnswer: {answered}\n\n"
    s += f"Question: {question}\nAnswer:" + sgl.gen("answer", max_tokens=12, stop="\n")


def run(backend=None) -> list[str]:
    """The answers."""
    rows = [{"question": question} for question in QUESTIONS]
    states = answer.run_batch(rows, backend=backend, temperature=0)
    return [state["answer"].strip() for state in states]


if __name__ == "__main__":
    for question, answered in zip(QUESTIONS, run(), strict=True):
        print(f"{question} {answered}")
