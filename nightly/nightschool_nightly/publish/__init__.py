"""Step 8 of a night: the candidate becomes a release, with its lineage and its report."""
