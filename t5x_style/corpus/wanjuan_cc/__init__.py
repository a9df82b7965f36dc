"""The stages of the WanJuan-CC pipeline (arXiv 2402.19282)."""
