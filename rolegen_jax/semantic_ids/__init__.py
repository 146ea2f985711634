"""Item embeddings, their quantization, the catalogue (a unique semantic ID per item), and tables
that constrain decoding to real items. Read embeddings, residual_kmeans, rqvae, catalogue, trie,
stage; for catalogues that change while they serve: allocator, mutable_layout, _tables, _trie."""
