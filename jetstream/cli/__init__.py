"""The command line: ``jetstream run``, ``jetstream bench``, ``jetstream info``."""
