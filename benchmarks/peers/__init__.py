"""One module for each peer; `benchmarks.peer.every_peer` finds them."""
