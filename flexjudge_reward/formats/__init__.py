"""How to ask a judge and how to read its reply: one file per format or format wrapper."""
