"""What tests share: a generator of corpora, builds, servers, and runs of the commands."""
