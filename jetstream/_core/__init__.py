"""The thin layer over the extension module; nothing else imports ``jetstream._native``."""
