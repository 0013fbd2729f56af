"""What is to be encoded: the corpus' lists, mouths and wavs."""
