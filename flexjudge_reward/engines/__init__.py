"""Engines: how a prompt becomes a reply. Each hides batching, transport, chat template and media form.

The contract is `base.py`; one test runs over all of them.
"""
