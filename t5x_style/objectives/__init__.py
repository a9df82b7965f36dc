"""One file for each loss contract."""
