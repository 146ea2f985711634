"""Item embeddings, their quantisation, the catalogue (every item's own semantic ID) and the constraint tables of the beams.
Order of reading: embeddings, residual_kmeans, rqvae, catalogue, trie, stage."""
