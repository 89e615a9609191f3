"""From pixels to scores: croppers, networks, scorer, passports, weights."""
