"""Seeded damage of every kind of file, tried on every reader: `cases` says what is tried, `runner` tries it."""
