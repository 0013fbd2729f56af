"""What tests share: made corpora, builds, servers, and runs of the commands."""
