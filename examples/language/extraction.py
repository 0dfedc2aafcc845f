"""Structured extraction: the answer always matches its regular expression."""

import jaxsgl as sgl

PERSON = r'\{"name": "[A-Za-z ]{1,20}", "age": [0-9]{1,3}\}'


@sgl.function
def extract_user_info(s, text):
    s += sgl.system("You extract data.")
    s += sgl.user(f"Extract name and age as JSON: {text}")
    s += sgl.assistant(sgl.gen("json_output", max_tokens=64, regex=PERSON))


def run(backend=None) -> list[str]:
    """The extracted object, as text."""
    text = "John Smith is 32 years old."
    return [extract_user_info.run(text=text, backend=backend, temperature=0)["json_output"]]


if __name__ == "__main__":
    print(run()[0])
