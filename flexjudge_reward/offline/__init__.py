"""Jobs over data sets: score, rerank, annotate."""
