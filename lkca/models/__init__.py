"""The models of the tables by the name of their row, and what they cost."""
