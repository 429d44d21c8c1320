"""Configurations: `get_config(arg)` per family, always locked."""
