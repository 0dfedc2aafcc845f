"""What is raised when a model cannot be loaded."""


class CheckpointError(Exception):
    """One line for a person: the file, the tensor or key in it, and what is wrong with it."""
