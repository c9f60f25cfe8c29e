"""Agents made with a framework, behind a URL or behind a command: one module each, imported only where it is used."""
