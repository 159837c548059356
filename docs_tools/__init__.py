"""What makes the documentation's figures and formulas; the pages themselves are in docs/."""
