"""What the book shows, made from the ledger and from what was published."""
