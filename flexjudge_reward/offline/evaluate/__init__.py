"""How far a judge can be trusted: the published benchmarks, a user's own labels, and go or no-go before a run."""
