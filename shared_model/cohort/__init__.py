"""The prepared cohort: decoded once, memory-mapped for ever after, one row and one bag of views a patient."""
