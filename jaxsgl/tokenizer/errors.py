"""What is raised for text, messages or tokenizer files that cannot be used."""


class TokenizerError(ValueError):
    """One line for a person."""


def one_line(error: Exception) -> str:
    """Return the message of another library's error, fit to be part of a line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
