"""What a build decides, checks and reports."""
