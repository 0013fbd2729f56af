"""What benchmarks/loading.py lets run against each other."""
