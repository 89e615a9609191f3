"""The page and the HTTP API over one database."""
