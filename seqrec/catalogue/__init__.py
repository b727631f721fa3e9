"""The catalogue: item table, scorer, search for the best items, and tables that are sharded over processes."""
