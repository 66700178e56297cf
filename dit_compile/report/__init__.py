"""What a run of the compiler looks like to a person: tables, diffs and plain data."""
