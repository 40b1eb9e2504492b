"""One hospital: the importer (ingest), the trainer (training, privacy) and the courier (the Flower app)."""
