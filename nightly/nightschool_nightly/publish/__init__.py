"""The release, its lineage and its report."""
