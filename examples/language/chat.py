"""Multi-turn chats behind one system prompt: each turn finds all turns before it in the cache."""

import jaxsgl as sgl

SYSTEM = (
    "You are the assistant of a small public library. You help visitors to find books, tell them "
    "when the library is open, and explain how borrowing works. The library is open from Tuesday "
    "to Friday between 10 and 18 o'clock, and on Saturday between 10 and 14 o'clock. A visitor may "
    "borrow eight books for four weeks, and twice prolong them by two weeks if nobody asks for "
    "them. Films and games may be borrowed for one week. A card costs 12 dollars a year; for "
    "children, pupils and students it is free. Lost books must be replaced. Rooms for groups of up "
    "to six people can be booked three days ahead. You answer in one or two short sentences, you "
    "are friendly, and if you do not know something you send the visitor to the desk."
)
CHATS = (
    ("When are you open?", "And on Saturday?", "May I bring my dog?", "Thank you, goodbye!"),
    ("How many books may I borrow?", "For how long?", "Can I keep them longer?", "And films?"),
    ("What does a card cost?", "I am a student.", "What do I have to bring?", "See you soon!"),
    ("I have lost a book.", "It was quite old.", "Where do I pay?", "How do I get a new one?"),
    ("Can we meet in the library?", "We are five people.", "How do I book?", "Is there coffee?"),
    ("Do you have books about bees?", "For a child of six.", "And about trees?", "Where are they?"),
)


@sgl.function
def chat(s, questions):
    s += sgl.system(SYSTEM)
    for number, question in enumerate(questions):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen(f"answer_{number}", max_tokens=24))


def run(backend=None) -> list[str]:
    """All answers, chat by chat."""
    states = chat.run_batch([(questions,) for questions in CHATS], backend=backend, temperature=0)
    return [
        state[f"answer_{number}"]
        for state, questions in zip(states, CHATS, strict=True)
        for number in range(len(questions))
    ]


if __name__ == "__main__":
    answers = iter(run())
    for questions in CHATS:
        for question in questions:
            print(f"> {question}\n{next(answers)}")
        print()
