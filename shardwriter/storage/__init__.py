"""Where the bytes of a store lie: a folder, or a bucket."""
