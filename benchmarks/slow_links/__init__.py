"""Many workers over slow links: how long each mode and codec takes to a loss; python -m benchmarks.slow_links."""
