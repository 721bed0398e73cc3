"""Ranking single fresh requests, as the score job ranks buckets of them."""
