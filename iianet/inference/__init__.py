"""What is done with a trained separator: it is opened, evaluated, and separates recordings."""
