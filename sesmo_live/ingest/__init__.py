"""From files seen to scores kept: what each file is, which images are scored, what is written to the ledger."""
