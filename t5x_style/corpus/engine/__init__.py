"""The engine of the corpus room: stages over columnar shards, on one machine or many."""
