"""What a site promises its patients and keeps count of: secret randomness, the accountant, and the ledger of what was spent."""
