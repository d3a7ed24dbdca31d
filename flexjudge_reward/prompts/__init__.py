"""Prompt sets (`flex/`, `nano/`) and rubrics as data; `template.py` fills them, `quoting.py` is for untrusted text."""
