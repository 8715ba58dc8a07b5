"""The search for the weights of a merge: what is searched, how, and what is kept."""
