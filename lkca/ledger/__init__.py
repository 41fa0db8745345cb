"""What was run: protocols, records, which runs make a cell, how sure a difference is, and where a number comes from."""
