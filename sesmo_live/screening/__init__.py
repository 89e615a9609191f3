"""Well statistics: pure functions on numbers and arrays."""
