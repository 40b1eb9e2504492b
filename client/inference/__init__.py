"""Scores, explanations and results for a site's own patients; the importer's, because results carry identities."""
