"""Agents of other frameworks, made agents of ours. One module for each framework; the core imports none of them."""
