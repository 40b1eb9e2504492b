"""The coordinator: rounds, aggregation, the journal and the report."""
