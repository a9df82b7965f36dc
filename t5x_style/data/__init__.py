"""Online data: vocabulary, seqio tasks, token stores, packing, the index-addressed stream."""
