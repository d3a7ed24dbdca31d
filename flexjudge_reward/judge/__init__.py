"""The road from Examples to numbers: `judge.py` gives verdicts, `rewards.py` is the one gate to numbers."""
