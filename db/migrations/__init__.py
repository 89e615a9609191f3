"""Schema migrations, run by `db.engine.upgrade`."""
