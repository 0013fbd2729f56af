"""A store as a whole: what it holds, and how that changes."""
