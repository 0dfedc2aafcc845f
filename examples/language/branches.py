"""A question answered in two branches that run beside each other and share their beginning."""

import jaxsgl as sgl


@sgl.function
def compare(s, first, second):
    s += sgl.system("You answer in one short sentence.")
    for name, place in (("first", first), ("second", second)):
        with sgl.branch(name=name) as b:
            b += sgl.user(f"How tall is {place}?")
            b += sgl.assistant(sgl.gen("height", max_tokens=24))
    s += sgl.user(f"{s['first.height']} {s['second.height']} Which is taller?")
    s += sgl.assistant(sgl.gen("answer", max_tokens=24))


def run(backend=None) -> list[str]:
    """The answer."""
    places = {"first": "the Shanghai Tower", "second": "the Eiffel Tower"}
    return [compare.run(**places, backend=backend, temperature=0)["answer"]]


if __name__ == "__main__":
    print(run()[0])
