"""Faults on real parts: real workers, a real server, a real network, and an account of what came of it."""
