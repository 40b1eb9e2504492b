"""What a site promises its patients and keeps count of: secret randomness, accountant, ledger of what was spent."""
