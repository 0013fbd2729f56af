"""What comes before a build: the mixtures of a corpus, and the lists that name them."""
