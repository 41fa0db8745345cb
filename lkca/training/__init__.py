"""The engine, the two tasks that it trains, and the work that fills the ledger."""
