"""What is remembered: schema, store, queries, migrations."""
