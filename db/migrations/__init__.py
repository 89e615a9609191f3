"""Schema migrations, run by `db.care.upgrade`."""
