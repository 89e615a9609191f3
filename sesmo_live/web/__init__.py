"""The page and the HTTP API over a database: a process of its own, which never imports TensorFlow."""
