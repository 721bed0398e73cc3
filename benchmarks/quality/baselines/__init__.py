"""One baseline a module: `fit(histories, n_items, settings, seed)` gives a scorer.

histories: items per user, oldest first. The scorer takes histories of any users and gives float32[users, n_items].
`VERSION` goes up with a change that changes scores, so that older ranks in the cache are not used.
"""
