"""What a judge reads: prompt sets (`flex/`, `nano/`) and rubrics as data, `template.py` to fill them, `quoting.py` to
keep untrusted text from being read as anything else.
"""
