"""What the cache raises when it is misused, or when its books are wrong."""


class AccountingError(Exception):
    """A page, lock or counter is not what a recount says. Always a defect of the engine."""


class LeaseError(Exception):
    """A lease or a lock was used after it was given back or lost."""
