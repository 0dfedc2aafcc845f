"""Taking away the tokens that a grammar does not allow."""
